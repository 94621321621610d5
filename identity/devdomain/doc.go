// SPDX-License-Identifier: Apache-2.0

// Package devdomain is a small SPIFFE trust domain for development and tests: a
// certificate authority in memory, a Workload API and a Broker API, each on a
// Unix socket. Whoever talks to it uses the code that talks to SPIRE; nothing
// above it knows the difference.
//
// It tells workloads apart by rules over user, group, executable path and the
// executable's SHA-256. A process that no rule matches is
//
//	spiffe://<trust domain>/uid/<uid>
//
// Rules that give one process different IDs give it none, and the log says so.
//
// What it guarantees: the caller of the Workload API is the process that
// connected, and still lives; the Broker API answers only callers with an
// X.509-SVID of the configured IDs, over TLS 1.3; SVIDs are renewed before half
// of their lifetime has passed; Close leaves no goroutine and no socket behind.
//
// What it does not: it is no SPIRE. There is no attestation of nodes, no
// persistence (a restart makes a new authority, and every earlier SVID is
// worthless), no revocation, and an executable path means what the process's
// own mount namespace makes of it. Root can be anybody. It says so in its log.
//
// Two answers follow SPIRE where the SPIFFE Broker API standard (section 4.8)
// differs: a process that is entitled to nothing, or does not exist, gets an
// empty list from SubscribeToX509SVID rather than an error, and the stream does
// not end with the process.
package devdomain
