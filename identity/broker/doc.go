// SPDX-License-Identifier: Apache-2.0

// Package broker asks a SPIFFE Broker API which SPIFFE IDs a local process is
// entitled to. SPIRE's agent serves one since 1.15.2, and so does devdomain.
//
// What it guarantees:
//
//   - Only a server with the configured SPIFFE ID, or one below it by whole
//     segments, is believed; both sides prove themselves with X.509-SVIDs over
//     TLS 1.3, and each rotation of our own SVID makes a new connection, so the
//     server is verified again with the newest bundle.
//   - Every answer is bounded in time, and an answer with anything wrong in it
//     is discarded as a whole: a malformed SPIFFE ID or one without a path, one
//     of another trust domain, an ID that the certificate beside it does not
//     carry, an expired SVID.
//   - Not being entitled is never mistaken for a broken broker, and the other
//     way round: the first is a Grant without IDs, the second is
//     secret.ErrUnavailable.
//
// The answer is the first message of SubscribeToX509SVID. The other choice is
// FetchJWTSVID, whose tokens would be worthless to anybody but us. But SPIRE's
// agent has to call its server to sign one, so reading a secret would wait for
// the network and end with a server's outage, while it holds the X.509-SVIDs of
// its node ready. The price is that the message carries the workload's private
// keys: they are cleared before anything else is done with it. The copies in
// the receive buffers of gRPC and TLS are out of reach; they are overwritten as
// the buffers are used again.
//
// The server does not tell whether a process has exited, nor whether a number
// belongs to another process by now. Who asks holds a pidfd and looks at it
// again after the answer.
package broker
