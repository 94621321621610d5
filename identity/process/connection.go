// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// connection is a socket's peer, as it was when the connection was accepted.
type connection struct {
	table   *Table
	process *Process
	refusal error // nil, or why the process is nobody's workload

	mu     sync.RWMutex
	closed bool // guards the descriptors of process against Close
}

var _ identity.Connection = (*connection)(nil)

// Accept looks at the process that connected. A process that is nobody's
// workload is told by Caller, which names it for the audit log, and not here:
// it may still offer a credential. So is our own, which has no need to ask a
// broker about itself. The connection stays the caller's.
//
// The error is secret.ErrUnavailable when the peer could not be looked at.
func (t *Table) Accept(conn *net.UnixConn) (identity.Connection, error) {
	p, err := t.kernel.peer(conn)
	if err == nil && p.pid == t.self {
		p.Close()
		err = fmt.Errorf("the agent itself is nobody's workload: %w", secret.ErrDenied)
	}
	if err != nil && !errors.Is(err, secret.ErrDenied) {
		return nil, err
	}
	return &connection{table: t, process: p, refusal: err}, nil
}

// Caller implements identity.Connection.
func (c *connection) Caller(ctx context.Context) (identity.Caller, error) {
	caller := identity.Caller{Source: identity.Peer, Process: c.process.Info()}
	err := c.refusal
	if err == nil {
		err = c.unchanged()
	}
	if err == nil {
		caller.IDs, err = c.identify(ctx)
	}
	return caller, err
}

// unchanged proves that the process is the generation that it was when the
// connection was accepted.
func (c *connection) unchanged() error {
	c.mu.RLock()
	defer c.mu.RUnlock()
	p := c.process
	if c.closed {
		return fmt.Errorf("the connection of process %d is closed: %w", p.pid, secret.ErrDenied)
	}
	now, err := p.kernel.leader(p.pidfd, p.procfd)
	if err != nil {
		return failed("asking for the ids", p.pid, err)
	}
	if !p.unchanged(&p.opened.Generation, &now) {
		return fmt.Errorf("process %d is gone, or not what it was when it connected: %w", p.pid, secret.ErrDenied)
	}
	return nil
}

func (c *connection) identify(ctx context.Context) ([]spiffeid.ID, error) {
	was := &c.process.opened.Generation
	if ids, ok := c.table.recall(was); ok {
		return ids, nil
	}
	p, err := c.table.kernel.open(was.pid)
	if err != nil {
		return nil, err
	}
	if p.opened.Generation != *was {
		p.Close()
		return nil, fmt.Errorf("process %d is not what it was when it connected: %w", p.pid, secret.ErrDenied)
	}
	return c.table.identify(ctx, p)
}

// Close implements identity.Connection. Its error is always nil.
func (c *connection) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	c.process.Close()
	return nil
}
