// SPDX-License-Identifier: Apache-2.0

package process

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

const (
	maxTTL           = 60 * time.Second
	defaultGrace     = 30 * time.Second
	defaultDeadline  = 2 * time.Second
	defaultProcesses = 16384

	// maxAsking bounds how many processes the broker is asked about at once.
	// A fork bomb that opens files gets ErrUnavailable beyond it.
	maxAsking = 256

	// retryPause is how long a process in its grace is not asked about again,
	// so that not every one of its requests waits for a broker that is down.
	retryPause = time.Second
)

// Config is what a Table needs.
type Config struct {
	Attestor     identity.Attestor      // required
	TrustDomains []spiffeid.TrustDomain // required: IDs of others are dropped

	// Source is the source of the callers that Thread returns; "" is
	// identity.Broker.
	Source identity.Source

	// TTL is how long an answer of the broker is used without asking again:
	// more than 0, at most 60 s; 0 is 60 s.
	TTL time.Duration

	// Grace is how long after the broker's last answer, and before its SVIDs
	// expire, a known process is served while the broker does not answer. 0 is
	// 30 s, negative is not at all. It bridges an outage only as far as it is
	// longer than TTL.
	Grace time.Duration

	// Deadline bounds how long a caller waits; 0 is 2 s.
	Deadline time.Duration

	// MaxProcesses is how many are remembered, at two descriptors each. Beyond
	// it one that has not asked for long is forgotten, and asked about again
	// when it comes back. 0 is 16,384, or fewer where that would take more than
	// half of the descriptors that this process may have.
	MaxProcesses int

	Now    func() time.Time // nil is time.Now
	Logger *slog.Logger     // nil discards
}

// Table identifies callers, and remembers them. It implements
// identity.Threads, and Accept makes identity.Connections.
type Table struct {
	config   Config
	kernel   kernel
	self     int
	lifetime context.Context // of the questions to the broker
	cancel   context.CancelFunc
	exits    *exits
	running  sync.WaitGroup
	uses     atomic.Uint64 // counts, to tell what was used least recently

	mu      sync.RWMutex
	closed  bool
	known   map[int]*entry // by process id
	flights map[Generation]*flight
}

var _ identity.Threads = (*Table)(nil)

// entry is a known process.
type entry struct {
	process *Process
	ids     []spiffeid.ID
	expires time.Time // of the grant

	confirmed time.Time                 // when the broker was asked
	until     atomic.Pointer[time.Time] // when to ask again

	used  atomic.Uint64 // Table.uses at the last use
	users atomic.Int32  // the table's own, and those looking at the process
}

// New returns a Table that is ready. Close releases it. The error is
// secret.ErrInvalid for a bad Config, secret.ErrUnavailable without descriptors.
func New(config Config) (*Table, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	exits, err := newExits()
	if err != nil {
		return nil, err
	}
	lifetime, cancel := context.WithCancel(context.Background())
	t := &Table{
		config:   config,
		self:     unix.Getpid(),
		lifetime: lifetime,
		cancel:   cancel,
		exits:    exits,
		known:    make(map[int]*entry),
		flights:  make(map[Generation]*flight),
	}
	t.running.Go(func() { exits.wait(t.exited) })
	return t, nil
}

func (c *Config) complete() error {
	switch {
	case c.Attestor == nil:
		return fmt.Errorf("%w process table: no attestor", secret.ErrInvalid)
	case len(c.TrustDomains) == 0 || slices.ContainsFunc(c.TrustDomains, spiffeid.TrustDomain.IsZero):
		return fmt.Errorf("%w process table: no trust domain", secret.ErrInvalid)
	case c.TTL < 0 || c.TTL > maxTTL:
		return fmt.Errorf("%w time to live %s: more than 0, at most %s", secret.ErrInvalid, c.TTL, maxTTL)
	case c.Deadline < 0 || c.MaxProcesses < 0:
		return fmt.Errorf("%w process table: negative deadline or number of processes", secret.ErrInvalid)
	}
	if c.Source == "" {
		c.Source = identity.Broker
	}
	if c.TTL == 0 {
		c.TTL = maxTTL
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.Deadline == 0 {
		c.Deadline = defaultDeadline
	}
	if c.Now == nil {
		c.Now = time.Now // the clock of everything in this package
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.MaxProcesses == 0 {
		var limit unix.Rlimit
		if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
			return fmt.Errorf("reading the limit of descriptors: %w: %w", secret.ErrUnavailable, err)
		}
		c.MaxProcesses = max(1, int(min(limit.Cur/4, defaultProcesses)))
	}
	return nil
}

// Thread identifies the process of a filesystem request by the id of the thread
// that made it, with the errors of identity.Threads. A known, unchanged process
// costs five short system calls.
func (t *Table) Thread(ctx context.Context, tid uint32) (identity.Caller, error) {
	caller := identity.Caller{Source: t.config.Source}
	asking, err := t.kernel.caller(tid)
	if err == nil && t.remembered(asking, &caller) {
		return caller, nil
	}
	caller.Process = identity.Process{
		PID: asking.process, UID: asking.ids.fsuid, GID: asking.ids.fsgid, Cgroup: asking.cgroup,
	}
	if err != nil {
		return caller, err
	}
	p, err := t.kernel.openCaller(int(tid), asking)
	caller.Process.Executable = p.executable
	if err != nil {
		return caller, err
	}
	caller.Process = p.Info()
	caller.IDs, err = t.identify(ctx, p)
	return caller, err
}

// remembered completes caller when the process of a task is known, unchanged
// and was confirmed not long ago.
func (t *Table) remembered(asking task, caller *identity.Caller) bool {
	t.mu.RLock()
	e := t.known[asking.process]
	if e != nil {
		e.users.Add(1) // more than 1 now: the table uses it as long as it is in the map
	}
	t.mu.RUnlock()
	if e == nil {
		return false
	}
	defer e.release()
	if !e.process.unchanged(&e.process.opened.Generation, &asking) || !t.fresh(e) {
		return false
	}
	caller.IDs, caller.Process = e.ids, e.process.Info()
	return true
}

// fresh tells whether the answer for e may be used without asking again, and
// counts as its use. A clock that was set back ends it.
func (t *Table) fresh(e *entry) bool {
	now := t.config.Now()
	if now.Before(e.confirmed) || !now.Before(*e.until.Load()) {
		return false
	}
	e.used.Store(t.uses.Add(1))
	return true
}

// recall returns the IDs of a generation that is known and fresh.
func (t *Table) recall(g *Generation) ([]spiffeid.ID, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.recallLocked(g)
}

func (t *Table) recallLocked(g *Generation) ([]spiffeid.ID, bool) {
	e := t.known[g.pid]
	if e == nil || e.process.opened.Generation != *g || !t.fresh(e) {
		return nil, false
	}
	return e.ids, true
}

func (e *entry) release() {
	if e.users.Add(-1) == 0 {
		e.process.Close()
	}
}

// remember makes a process known, in place of what had its number. It owns p.
func (t *Table) remember(p *Process, ids []spiffeid.ID, confirmed, expires time.Time) {
	e := &entry{process: p, ids: ids, confirmed: confirmed, expires: expires}
	e.until.Store(new(earlier(confirmed.Add(t.config.TTL), expires)))
	e.users.Store(1)
	e.used.Store(t.uses.Add(1))

	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		e.release()
		return
	}
	t.forgetLocked(p.pid)
	for len(t.known) >= t.config.MaxProcesses {
		t.evictLocked()
	}
	t.known[p.pid] = e
	// In the map first: the exit may be told before add returns.
	if err := t.exits.add(p.pid, p.pidfd); err != nil {
		t.config.Logger.Warn("not remembering a process whose exit cannot be watched", "pid", p.pid, "error", err)
		t.forgetLocked(p.pid)
	}
}

// evictLocked forgets the least recently used of a few processes; the order in
// which a map is walked is random.
func (t *Table) evictLocked() {
	const few = 16
	var oldest *entry
	seen := 0
	for _, e := range t.known {
		if oldest == nil || e.used.Load() < oldest.used.Load() {
			oldest = e
		}
		if seen++; seen == few {
			break
		}
	}
	t.forgetLocked(oldest.process.pid)
}

func (t *Table) forgetLocked(pid int) {
	if e := t.known[pid]; e != nil {
		delete(t.known, pid)
		e.release()
	}
}

// forget drops what is known of a process that is not, or should not be, what
// it was.
func (t *Table) forget(pid int, which func(*entry) bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.known[pid]; e != nil && which(e) {
		t.forgetLocked(pid)
	}
}

// exited forgets a process that ended. What has its number now stays.
func (t *Table) exited(pid int) {
	t.forget(pid, func(e *entry) bool { return !e.process.Alive() })
	t.config.Logger.Debug("a known process exited", "pid", pid)
}

// Close forgets everything, ends the questions to the broker and waits for
// them. Later requests are secret.ErrUnavailable. Connections are closed by
// those who accepted them.
func (t *Table) Close() error {
	t.mu.Lock()
	if t.closed {
		t.mu.Unlock()
		t.running.Wait()
		return nil
	}
	t.closed = true
	for pid := range t.known {
		t.forgetLocked(pid)
	}
	t.mu.Unlock()
	t.cancel()
	err := t.exits.close()
	t.running.Wait()
	return err
}

func earlier(a, b time.Time) time.Time {
	if b.Before(a) {
		return b
	}
	return a
}
