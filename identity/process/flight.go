// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// flight is one question to the broker, for all who ask about the same
// generation meanwhile. The results are set before done is closed.
type flight struct {
	done chan struct{}
	ids  []spiffeid.ID
	err  error
}

// identify asks the broker about a process, which it owns, and waits within
// Config.Deadline.
func (t *Table) identify(ctx context.Context, p *Process) ([]spiffeid.ID, error) {
	ctx, cancel := context.WithTimeout(ctx, t.config.Deadline)
	defer cancel()
	pid := p.pid
	f, err := t.join(p) //nolint:contextcheck // the question is shared by all who wait for it
	if err != nil {
		return nil, err
	}
	select {
	case <-f.done:
		return f.ids, f.err
	case <-ctx.Done():
		return nil, fmt.Errorf("waiting for the identity of process %d: %w: %w", pid, secret.ErrUnavailable, ctx.Err())
	case <-t.lifetime.Done():
		return nil, fmt.Errorf("waiting for the identity of process %d: the agent stops: %w", pid, secret.ErrUnavailable)
	}
}

// join returns the flight for p's generation, and starts it if there is none.
// It owns p.
func (t *Table) join(p *Process) (*flight, error) {
	g := &p.opened.Generation
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.known[p.pid]; e != nil && e.process.opened.Generation != *g {
		t.forgetLocked(p.pid)
	}
	if ids, ok := t.recallLocked(g); ok { // a flight landed just now
		p.Close()
		return landed(ids), nil
	}
	if f := t.flights[*g]; f != nil {
		p.Close()
		return f, nil
	}
	switch {
	case t.closed:
		p.Close()
		return nil, fmt.Errorf("identifying process %d: the agent stops: %w", p.pid, secret.ErrUnavailable)
	case len(t.flights) >= maxAsking:
		p.Close()
		return nil, fmt.Errorf("identifying process %d: too many processes ask at once: %w", p.pid, secret.ErrUnavailable)
	}
	f := &flight{done: make(chan struct{})}
	t.flights[*g] = f
	t.running.Go(func() { t.fly(f, p) })
	return f, nil
}

func landed(ids []spiffeid.ID) *flight {
	f := &flight{done: make(chan struct{}), ids: ids}
	close(f.done)
	return f
}

// fly asks the broker. It outlives the request that started it, because others
// wait for it too; its context is the table's. A part of the deadline is left
// for what is done when the broker has not answered.
func (t *Table) fly(f *flight, p *Process) {
	ctx, cancel := context.WithTimeout(t.lifetime, t.config.Deadline*3/4)
	defer cancel()
	g := p.opened.Generation
	asked := t.config.Now()
	grant, err := t.config.Attestor.Attest(ctx, p.pid)
	f.ids, f.err = t.conclude(p, asked, grant, err)
	t.mu.Lock()
	delete(t.flights, g)
	t.mu.Unlock()
	close(f.done)
}

// conclude turns the broker's answer into IDs, and remembers or forgets the
// process. It owns p.
func (t *Table) conclude(p *Process, asked time.Time, grant identity.Grant, failure error) (ids []spiffeid.ID, err error) {
	pid, graced := p.pid, false
	if err = p.confirm(); err == nil {
		ids, err = t.accept(pid, grant, failure)
		if errors.Is(err, secret.ErrUnavailable) {
			ids, graced = t.grace(&p.opened.Generation)
			t.config.Logger.Warn("the broker did not answer", "pid", pid, "served", graced, "error", err)
		}
	}
	switch {
	case err == nil:
		t.remember(p, ids, asked, grant.Expires)
		return ids, nil
	case graced:
		p.Close()
		return ids, nil
	case errors.Is(err, secret.ErrDenied):
		t.config.Logger.Debug("a process is nobody's workload", "pid", pid, "error", err)
		t.forget(pid, func(*entry) bool { return true })
	}
	p.Close()
	return nil, err
}

// confirm proves that the process is what it was when it was opened, and has
// executed nothing in between: it could have been another program while the
// broker looked, and come back.
func (p *Process) confirm() error {
	now, err := p.observe()
	if err != nil {
		return err
	}
	if now != p.opened {
		return fmt.Errorf("process %d changed while the broker was asked about it: %w", p.pid, secret.ErrDenied)
	}
	return nil
}

// accept checks the broker's answer about a process.
func (t *Table) accept(pid int, grant identity.Grant, failure error) ([]spiffeid.ID, error) {
	switch {
	case failure == nil:
	case errors.Is(failure, secret.ErrUnavailable), errors.Is(failure, context.DeadlineExceeded), errors.Is(failure, context.Canceled):
		return nil, fmt.Errorf("asking the broker about process %d: %w: %w", pid, secret.ErrUnavailable, failure)
	default:
		return nil, fmt.Errorf("asking the broker about process %d: %w: %w", pid, secret.ErrDenied, failure)
	}
	if len(grant.IDs) == 0 {
		return nil, fmt.Errorf("process %d has no SPIFFE ID: %w", pid, secret.ErrDenied)
	}
	var ids []spiffeid.ID
	for _, id := range grant.IDs {
		if id.Path() != "" && slices.Contains(t.config.TrustDomains, id.TrustDomain()) &&
			!slices.Contains(ids, id) && len(ids) < identity.MaxIDs {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return nil, fmt.Errorf("process %d has no SPIFFE ID of our trust domain with a path: %w", pid, secret.ErrDenied)
	}
	if !t.config.Now().Before(grant.Expires) {
		return nil, fmt.Errorf("the SVIDs of process %d expired at %s: %w", pid, grant.Expires.UTC().Format(time.RFC3339), secret.ErrDenied)
	}
	return ids, nil
}

// grace returns the IDs of a generation that is known and within its grace, and
// lets it pass for a moment without asking again.
func (t *Table) grace(g *Generation) ([]spiffeid.ID, bool) {
	now := t.config.Now()
	t.mu.RLock()
	defer t.mu.RUnlock()
	e := t.known[g.pid]
	if e == nil || e.process.opened.Generation != *g {
		return nil, false
	}
	end := earlier(e.confirmed.Add(t.config.Grace), e.expires)
	if now.Before(e.confirmed) || !now.Before(end) {
		return nil, false
	}
	e.until.Store(new(earlier(now.Add(retryPause), end)))
	return e.ids, true
}
