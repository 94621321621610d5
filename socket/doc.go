// SPDX-License-Identifier: Apache-2.0

// Package socket serves gRPC on two Unix sockets: Secrets for workloads, and
// Admin for operators; on both also health and reflection.
//
// # Who is calling
//
// A connection that begins with a TLS handshake (RFC 8446) offers a credential:
// the caller's X.509-SVID, verified again for every request, so that it counts
// no longer than it and the bundles do. A connection that begins with HTTP/2
// (RFC 9113, section 3.4) offers none: the process at its other end is
// identified, again for every request. Anything else is told what is spoken
// here, and closed.
//
// # Guarantees
//
//   - No request reaches Secrets or Administration without an identity.Caller
//     that has at least one proven ID. A credential that was offered and is
//     invalid ends the request with UNAUTHENTICATED, whatever the process at the
//     other end could prove; both, and every other refusal before the caller is
//     known, go to Refusals first. Health and reflection need no credential,
//     but accept no invalid one.
//   - Every request has an ID, a deadline, and a bounded size. So do the number
//     of connections and the time they may take to say who they are; one user
//     gets no more than half of either.
//   - A socket never exists under its name with another mode than its own, and
//     never replaces one that is served.
//   - Errors of an unknown kind leave as INTERNAL, and as nothing else: their
//     text is in the log, under the request's ID. On the workload socket so are
//     the texts of errors that tell about the agent.
//
// # Limits
//
// The verification of a client's SVID is not part of the TLS handshake. The
// handshake proves that the client has the key of the certificate it sent; who
// that is, is decided for each request, where the answer can say what is wrong.
//
// Values are cleared as far as package wire can; its documentation says how far
// that is.
//
// A user who fills all of its connections with requests of the full size makes
// the agent hold them: Limits.Connections / 2 × Limits.Streams × Limits.Request
// bytes at worst.
package socket
