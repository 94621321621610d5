// SPDX-License-Identifier: Apache-2.0

// Package client reads and writes secrets through the agent on this node.
//
// A program proves who it is in one of two ways, which its configuration
// decides, and nothing else:
//
//   - With a Workload API, it fetches its X.509-SVID there, keeps it renewed, and
//     calls the agent over mTLS. It talks only to the agent's own SPIFFE ID: any
//     workload may be able to bind a socket path.
//   - Without one, it offers no credential, and the agent identifies its process.
//     It talks only to a socket that is served by root or by its own user.
//
// There is no way from one to the other: a Workload API that does not answer is
// an error.
//
// Errors are those of package secret, for errors.Is, with the agent's own words;
// errors.As finds an *Error, which has the request's ID in the agent's log.
//
// The Values that Get returns are the caller's to wipe. What it cannot wipe is
// in the documentation of package wire.
package client
