// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"net"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// Secrets is the door behind the Secrets service. Each method authorizes and
// audits; the errors are those of package secret.
type Secrets interface {
	// Get returns a version, the current one for 0. The receiver wipes it.
	Get(ctx context.Context, caller identity.Caller, path secret.Path, version secret.Version) (secret.Secret, error)

	// List returns the secrets below prefix that caller may list, in the byte
	// order of their segments, at most limit (1 to 10,000) of those after the
	// given path. more tells whether there are others. An entry is a folder
	// only when recursive is false, which stops at the first level.
	List(ctx context.Context, caller identity.Caller, prefix, after secret.Path, limit int, recursive bool) (entries []secret.Entry, more bool, err error)

	Describe(ctx context.Context, caller identity.Caller, path secret.Path) (secret.Info, error)

	// Put writes the next version and makes it current.
	Put(ctx context.Context, caller identity.Caller, path secret.Path, values secret.Values) (secret.Info, error)

	// Delete stops serving the selected versions; they stay in the store.
	Delete(ctx context.Context, caller identity.Caller, path secret.Path, versions secret.Selection) (secret.Info, error)

	// ExplainSelf tells what decides for the caller itself.
	ExplainSelf(ctx context.Context, caller identity.Caller, want policy.Permission, path secret.Path) ([]policy.Explanation, error)
}

// Administration is the door behind the Admin service; each method needs super
// on a power.
type Administration interface {
	// Purge destroys the empty secrets that which selects, and calls report
	// with the paths of each finished batch, and with how many were found in
	// all. Only found secrets are reported, and nothing is destroyed, when
	// which.DryRun is set.
	Purge(ctx context.Context, caller identity.Caller, which secret.Purge, report func(secret.PurgeProgress) error) error

	// ApplyPolicies creates or replaces the named policies, all or none.
	ApplyPolicies(ctx context.Context, caller identity.Caller, policies []policy.Policy) error
	Policies(ctx context.Context, caller identity.Caller) ([]policy.Policy, error)
	DeletePolicy(ctx context.Context, caller identity.Caller, name string) error

	// Explain tells what decides for any identity.
	Explain(ctx context.Context, caller identity.Caller, id spiffeid.ID, want policy.Permission, path secret.Path) (policy.Explanation, error)
}

// Statuses tells how the agent is.
type Statuses interface {
	// Status needs super on sys/status.
	Status(ctx context.Context, caller identity.Caller) (Status, error)

	// VerifyAudit checks the audit log. It needs super on sys/audit.
	VerifyAudit(ctx context.Context, caller identity.Caller) (AuditReport, error)
}

// AuditReport is what a check of the audit log found.
type AuditReport struct {
	Segments int
	Records  uint64
	Problems []string // what is not as it was written, and where
	Omitted  int      // how many more problems there are
}

// Status is how the agent is.
type Status struct {
	Version     string
	PID         int
	Started     time.Time
	SPIFFEID    string // the agent's own; "" until it has one
	Development bool
	Components  []Component
}

// Component is one part of the agent and how it is. Names are stable: "store",
// "audit", "identity", "broker", "mount", "socket".
type Component struct {
	Name    string
	Healthy bool
	Message string // what is wrong and what to do, or what it serves
}

// Refusals is told of requests that were refused before a caller was known.
type Refusals interface {
	// Refuse audits the refusal. Its error means that this was not possible.
	Refuse(ctx context.Context, unknown identity.Caller, operation string, reason error) error
}

// Peers identifies the process at the other end of a connection that offered
// no credential.
type Peers interface {
	// Accept is called once, right after a connection was accepted. The
	// connection stays the caller's.
	Accept(conn *net.UnixConn) (identity.Connection, error)
}
