// SPDX-License-Identifier: Apache-2.0

// Package workload is the agent as a SPIFFE workload: its own X.509-SVID and
// the bundles of the trust domains it accepts, both from the Workload API, and
// the TLS configurations that stand on them.
//
// What it guarantees:
//
//   - Open does not wait for the Workload API. Until the first SVID arrives,
//     every handshake fails and says so; Health names what is being waited for.
//   - When the Workload API goes away, the last SVID and bundles stay in use
//     until that SVID expires, and not a moment longer.
//   - A peer is accepted only with an SVID of our own trust domain, or of one
//     that the configuration names; having its bundle is not enough. The trust
//     domain is part of every ID that comes out of here, so a federated twin of
//     a local path is never mistaken for it.
//   - What the X509-SVID standard demands of a leaf and go-spiffe's verifier
//     does not check is checked here: a path in the SPIFFE ID (section 5.2) and
//     the digitalSignature key usage (section 4.3).
//   - TLS sessions are never resumed: crypto/tls skips the verification of the
//     peer on a resumed session.
//
// What it does not: a connection outlives the SVID it was made with. Whoever
// serves calls on it asks Verify on every one.
package workload
