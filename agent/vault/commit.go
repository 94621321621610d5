// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"context"
	"fmt"
	"sync"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// The bounds of a group: enough to share the syncs among many writers, and
// small enough that the first one does not wait for long.
const (
	maxGroup      = 256
	maxGroupBytes = 8 << 20
)

// change is one batch on its way through a group commit, with what must happen
// around it.
type change struct {
	batch   backend.Batch
	intent  *audit.Event // nil for upkeep that names nothing
	applied func()       // updates the index; called once, before the answer, if the batch was applied
	paths   []secret.Path
	all     bool // policies changed

	result backend.Result
	err    error
	done   chan struct{}
}

// committer gathers the changes of concurrent writers into groups. A group
// costs three syncs: intents, batches, outcomes.
//
//	intents → synced → Commit (batches, and the anchor of the audit log) → index, cache
//	       → outcomes → synced → followers → answers
//
// The outcome comes before the answer, so that whatever a caller was told is in
// the log. When the agent dies in between, the batch ID tells at the next start
// what became of the intent.
type committer struct {
	vault *Vault

	mu      sync.Mutex
	waiting []*change
	wake    chan struct{} // has one place
	closed  bool
	done    chan struct{}

	unsure []*change // the goroutine's own: failed, and not known whether before or after the fact
}

func startCommitter(v *Vault) *committer {
	c := &committer{vault: v, wake: make(chan struct{}, 1), done: make(chan struct{})}
	go c.run()
	return c
}

// submit waits until the change is decided. Once submitted a change is not
// taken back: ending ctx ends the waiting, and the error says so.
func (c *committer) submit(ctx context.Context, ch *change) error {
	return c.submitAll(ctx, []*change{ch})
}

// submitAll submits changes that may share groups, and waits for all of them.
// Each is decided on its own; the error is the first one's.
func (c *committer) submitAll(ctx context.Context, changes []*change) error {
	for _, ch := range changes {
		// One batch beyond the bounds would fail its whole group.
		if err := ch.batch.Check(); err != nil {
			return err
		}
		ch.done = make(chan struct{})
	}
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return fmt.Errorf("%w: the agent is stopping", secret.ErrUnavailable)
	}
	c.waiting = append(c.waiting, changes...)
	c.mu.Unlock()
	c.signal()
	var first error
	for _, ch := range changes {
		select {
		case <-ch.done:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the store: %w; the change may still happen", context.Cause(ctx))
		}
		if first == nil {
			first = ch.err
		}
	}
	return first
}

func (c *committer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// close lets what was submitted finish, then stops.
func (c *committer) close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.signal()
	<-c.done
}

func (c *committer) run() {
	defer close(c.done)
	for range c.wake {
		for {
			group, closed := c.take()
			if len(group) == 0 {
				if closed {
					return
				}
				break
			}
			c.commit(group)
			for _, ch := range group {
				close(ch.done)
			}
		}
	}
}

// take removes the next group from those waiting.
func (c *committer) take() (group []*change, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n, bytes := 0, 0
	for n < len(c.waiting) && n < maxGroup && bytes < maxGroupBytes {
		for _, op := range c.waiting[n].batch.Ops {
			bytes += len(op.Record.Body)
		}
		n++
	}
	group = c.waiting[:n:n]
	c.waiting = c.waiting[n:]
	return group, c.closed
}

// commit decides a group. No caller's context is in it: a group is not one
// caller's business, and a commit that was cut off half way would have to be
// found out about.
func (c *committer) commit(group []*change) {
	ctx := context.Background()
	v := c.vault
	if err := c.settleUnsure(ctx); err != nil {
		failAll(group, err)
		return
	}
	head, err := v.logAll(ctx, events(group, func(ch *change) *audit.Event { return ch.intent }))
	if err != nil {
		failAll(group, err)
		return
	}
	batches := make([]backend.Batch, 0, len(group)+1)
	for _, ch := range group {
		batches = append(batches, ch.batch)
	}
	results, err := v.backend.Commit(ctx, append(batches, v.anchor(head)))
	if err != nil {
		failAll(group, fmt.Errorf("writing to the store: %w", err))
		if err := c.findOut(ctx, group); err != nil {
			c.unsure = append(c.unsure, group...)
			v.logger.Error("what became of a write is not known until the store can be read", "error", err)
			return
		}
	} else {
		v.anchored(head)
		for i, ch := range group {
			ch.result = results[i]
		}
	}
	c.finish(ctx, group)
}

// finish takes over what was applied, and then logs and tells it.
func (c *committer) finish(ctx context.Context, group []*change) {
	v := c.vault
	for _, ch := range group {
		if ch.happened() {
			v.cache.invalidate(ch.batch.Ops)
			ch.applied()
		}
	}
	if _, err := v.logAll(ctx, events(group, func(ch *change) *audit.Event { return ch.outcome(v) })); err != nil {
		v.logger.Error("the audit log does not take the outcome of a change; the next start adds it", "error", err)
		for _, ch := range group {
			if ch.err == nil {
				ch.err = fmt.Errorf("the change was made, but its outcome is not in the audit log: %w", err)
			}
		}
	}
	for _, ch := range group {
		if ch.result.Seq != 0 && !ch.result.Conflict && (ch.all || len(ch.paths) > 0) {
			v.feeds.publish(secret.Changes{Paths: ch.paths, All: ch.all})
		}
	}
}

// findOut asks the store what became of a group whose commit failed: the error
// may have come after the fact. What has no ID is upkeep, which is done again.
func (c *committer) findOut(ctx context.Context, group []*change) error {
	for _, ch := range group {
		if ch.batch.ID == [16]byte{} {
			continue
		}
		records, _, err := c.vault.backend.Get(ctx, []backend.Key{{Table: backend.Applied, ID: string(ch.batch.ID[:])}})
		if err != nil {
			return err
		}
		if len(records) == 1 {
			ch.err, ch.result = nil, backend.Result{Seq: records[0].Rev}
		}
	}
	return nil
}

// settleUnsure finds out what could not be found out before. Until it can, the
// index may be behind the store, and no further change is made.
func (c *committer) settleUnsure(ctx context.Context) error {
	if len(c.unsure) == 0 {
		return nil
	}
	if err := c.findOut(ctx, c.unsure); err != nil {
		return fmt.Errorf("finding out what became of an earlier write: %w", err)
	}
	c.finish(ctx, c.unsure)
	c.unsure = nil
	return nil
}

func failAll(group []*change, err error) {
	for _, ch := range group {
		ch.err = err
	}
}

// happened reports whether the batch was applied.
func (ch *change) happened() bool { return ch.err == nil && !ch.result.Conflict }

// outcome is the record of what became of the intent.
func (ch *change) outcome(v *Vault) *audit.Event {
	if ch.intent == nil {
		return nil
	}
	e := *ch.intent
	e.Time, e.Phase = v.now(), audit.Outcome
	e.Revision = uint64(ch.result.Seq)
	switch {
	case ch.err != nil:
		e.Decision, e.Reason = audit.Failed, ch.err.Error()
	case ch.result.Conflict:
		e.Decision, e.Reason = audit.Failed, "another change came first; it is tried again"
	}
	return &e
}

func events(group []*change, of func(*change) *audit.Event) []audit.Event {
	all := make([]audit.Event, 0, len(group))
	for _, ch := range group {
		if e := of(ch); e != nil {
			all = append(all, *e)
		}
	}
	return all
}

// transaction is the Store of one operation's Update: it reads from the
// backend, and commits through the group, with the intent and the index change
// that the attempt prepared.
type transaction struct {
	vault   *Vault
	prepare func() *change // of the last attempt
}

// Get reads past the cache: what is read becomes a condition.
func (t transaction) Get(ctx context.Context, keys []backend.Key) ([]backend.Record, backend.Seq, error) {
	return t.vault.backend.Get(ctx, keys)
}

// Apply commits one batch with others.
func (t transaction) Apply(ctx context.Context, batch backend.Batch) (backend.Result, error) {
	ch := t.prepare()
	ch.batch = batch
	if err := t.vault.committer.submit(ctx, ch); err != nil {
		return backend.Result{}, err
	}
	return ch.result, nil
}
