// SPDX-License-Identifier: Apache-2.0

// Package identity says who makes a request: Caller, and the small ports that
// produce one.
//
// A Caller with IDs exists only after somebody proved them: a verified SVID, or
// a process that a broker vouched for. The zero Caller has no ID, and every
// policy decision about it is no. The packages below this one make Callers;
// nothing else should.
package identity

import (
	"context"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// MaxIDs is how many SPIFFE IDs of one process are considered.
const MaxIDs = 8

// Source says how the IDs of a Caller were proven.
type Source string

// The sources. The audit log shows them by these names.
const (
	X509      Source = "x509"      // mTLS with the caller's X.509-SVID
	JWT       Source = "jwt"       // a JWT-SVID for our audience
	Peer      Source = "peer"      // the process at the other end of a socket, through a broker
	Session   Source = "session"   // a break-glass session
	Broker    Source = "broker"    // the process that opened a file, through a broker
	Delegated Source = "delegated" // the same through SPIRE's Delegated Identity API
	Fixed     Source = "fixed"     // a view made for exactly one workload
	Agent     Source = "agent"     // the agent's own upkeep
)

// Process describes a local process as the kernel told it. The zero Process is
// an unknown one.
type Process struct {
	PID        int    // of the thread group, in the agent's pid namespace
	UID, GID   uint32 // the filesystem ids, equal to the effective ones
	Executable string // for the audit log; the path may be gone or replaced
	Cgroup     uint64 // cgroup id, 0 when unknown
}

// Caller is whoever makes one request.
type Caller struct {
	IDs     []spiffeid.ID // 1 to MaxIDs when identified; not modified after
	Source  Source
	Process Process
	Request string // the request's ID: in the answer and in the audit log
}

// Grant is what a broker says about a process.
type Grant struct {
	IDs     []spiffeid.ID // empty: not entitled to any
	Expires time.Time     // when the earliest of the SVIDs behind the IDs expires
}

// Attestor tells which SPIFFE IDs a process is entitled to. Its error is
// secret.ErrUnavailable when it could not ask; no entitlement is no error.
type Attestor interface {
	Attest(ctx context.Context, pid int) (Grant, error)
}

// Threads identifies the caller of a filesystem request by its thread.
//
// Errors: secret.ErrDenied when it is nobody's workload, secret.ErrUnavailable
// when that could not be found out in time. In both cases the Caller that comes
// with the error has no IDs, and what is known of the process for the audit log.
type Threads interface {
	Thread(ctx context.Context, tid uint32) (Caller, error)
}

// Connection is the process at the other end of one Unix socket connection.
// Caller identifies it anew at each call, with the errors of Threads; a process
// that is no longer the one that connected is denied.
type Connection interface {
	Caller(ctx context.Context) (Caller, error)
	Close() error
}
