// SPDX-License-Identifier: Apache-2.0

// Package sockettest has what tests and benchmarks of the sockets need: a Door
// that keeps secrets in a map, the agent's side of mTLS from an embedded trust
// domain, and a bare gRPC echo to compare with. Nothing in it is for production.
package sockettest
