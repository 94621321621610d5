// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/backend/sqlite"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
)

// storePart is a vault behind the agent's socket, with mTLS, that can also be
// called directly, and another store to commit to with nothing above it.
type storePart struct {
	store  *store
	caller string // whose the direct calls are
	paths  []secret.Path

	domain  *devdomain.Server
	source  *workload.Source
	server  *socket.Server
	served  chan error
	bare    backend.Backend
	scratch *os.File
	offset  int64
}

// Serving says what a storePart is to serve.
type Serving struct {
	Dir   string
	UID   int // of the user who writes
	Paths []string
}

// Serve makes everything, and puts the secrets once.
func (p *storePart) Serve(s Serving, _ *nothing) (err error) {
	ctx := context.Background()
	for _, text := range s.Paths {
		path, err := secret.ParsePath(text)
		if err != nil {
			return err
		}
		p.paths = append(p.paths, path)
	}
	if p.store, err = newStore(ctx, s.Dir); err != nil {
		return err
	}
	p.caller = fmt.Sprintf("uid/%d", s.UID)
	if err := p.store.allow(ctx, idOf(p.caller), "db", 99); err != nil {
		return err
	}
	p.store.commits.keepFrom() // so that the bare store begins with the same
	if err := p.store.fill(ctx, s.Paths, 128); err != nil {
		return err
	}
	if p.bare, err = sqlite.Open(sqlite.Config{Path: filepath.Join(s.Dir, "bare", "keyhole.db")}); err != nil {
		return err
	}
	var filled Done
	if err := p.Commit(Work{}, &filled); err != nil {
		return err
	}
	if err := p.listen(ctx, s.Dir); err != nil {
		return err
	}
	return p.openScratch(filepath.Join(s.Dir, "scratch"))
}

// listen serves the vault as the agent would.
func (p *storePart) listen(ctx context.Context, dir string) (err error) {
	p.domain, err = devdomain.New(devdomain.Config{Dir: filepath.Join(dir, "spiffe"), Self: idOf("keyhole/agent")})
	if err != nil {
		return err
	}
	if p.source, err = workload.Open(ctx, workload.Config{Address: workloadAPI(dir)}); err != nil {
		return err
	}
	<-p.source.Ready()
	p.server, err = socket.New(socket.Config{
		Path: agentSocket(dir), Secrets: p.store, Refusals: p.store, Certificates: p.source,
	})
	if err != nil {
		return err
	}
	p.served = make(chan error, 1)
	go func() { p.served <- p.server.Serve() }()
	return nil
}

// Put calls the vault, as the socket does. Each caller has secrets of its own.
func (p *storePart) Put(w Work, reply *Done) error {
	values, err := newValues()
	if err != nil {
		return err
	}
	defer values.Wipe()
	id := idOf(p.caller)
	*reply, err = w.do(func(caller int) error {
		_, err := p.store.Put(context.Background(), as(id), own(p.paths, caller, w.Callers), values)
		return err
	})
	return err
}

// Keep keeps the batches of the changes that are made from now on.
func (p *storePart) Keep(nothing, *nothing) error {
	p.store.commits.keepFrom()
	return nil
}

// Commit commits the groups of batches that were kept to the bare store, one
// after another as the vault does. Conditions are left out: they name revisions
// of the other store.
func (p *storePart) Commit(_ Work, reply *Done) error {
	groups := p.store.commits.take()
	for _, group := range groups {
		reply.Count += countWrites(group)
		for i := range group {
			group[i].If = nil
		}
	}
	begin := time.Now()
	for _, group := range groups {
		if _, err := p.bare.Commit(context.Background(), group); err != nil {
			return err
		}
	}
	reply.Took = time.Since(begin)
	return nil
}

// Counts are counted since the start.
type Counts struct {
	Groups, Writes int64
	AuditSyncs     int64 // those that somebody waited for, and those by the clock
}

// Count tells what there was until now.
func (p *storePart) Count(_ nothing, reply *Counts) error {
	stats := p.store.log.Stats()
	c := p.store.commits
	c.mu.Lock()
	defer c.mu.Unlock()
	*reply = Counts{Groups: c.groups, Writes: c.writes, AuditSyncs: int64(stats.Syncs + stats.TimedSyncs)}
	return nil
}

// Phases is how long the parts of one Put take, in microseconds.
type Phases struct{ Before, Commit, After float64 }

// Dissect puts so many times, one after another, and tells the mean of each
// phase: deciding, sealing and the synced intent; the commit to the store; the
// index and the synced outcome.
func (p *storePart) Dissect(count int, reply *Phases) error {
	values, err := newValues()
	if err != nil {
		return err
	}
	defer values.Wipe()
	c := p.store.commits
	var before, commit, after time.Duration
	for range count {
		begin := time.Now()
		if _, err := p.store.Put(context.Background(), as(idOf(p.caller)), own(p.paths, 0, 1), values); err != nil {
			return err
		}
		end := time.Now()
		c.mu.Lock()
		before, commit, after = before+c.begin.Sub(begin), commit+c.end.Sub(c.begin), after+end.Sub(c.end)
		c.mu.Unlock()
	}
	mean := func(all time.Duration) float64 { return Done{Count: int64(count), Took: all}.micros() }
	*reply = Phases{Before: mean(before), Commit: mean(commit), After: mean(after)}
	return nil
}

// openScratch makes a file like a segment of the audit log: its space reserved.
func (p *storePart) openScratch(name string) (err error) {
	if p.scratch, err = os.Create(name); err != nil {
		return err
	}
	const size = 64 << 20
	return errors.Join(unix.Fallocate(int(p.scratch.Fd()), 0, 0, size), p.scratch.Sync())
}

// Sync writes half a kibibyte and syncs it, over and over: what the disk allows.
func (p *storePart) Sync(w Work, reply *Done) (err error) {
	line := make([]byte, 512)
	*reply, err = w.do(func(int) error {
		_, err := p.scratch.WriteAt(line, p.offset)
		p.offset += int64(len(line))
		return errors.Join(err, unix.Fdatasync(int(p.scratch.Fd())))
	})
	return err
}

func (p *storePart) close() error {
	var errs []error
	if p.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		errs = append(errs, p.server.Close(ctx), <-p.served)
	}
	if p.source != nil {
		errs = append(errs, p.source.Close())
	}
	if p.domain != nil {
		errs = append(errs, p.domain.Close())
	}
	if p.bare != nil {
		errs = append(errs, p.bare.Close())
	}
	if p.scratch != nil {
		errs = append(errs, p.scratch.Close())
	}
	if p.store != nil {
		errs = append(errs, p.store.close())
	}
	return errors.Join(errs...)
}
