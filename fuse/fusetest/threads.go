// SPDX-License-Identifier: Apache-2.0

package fusetest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Anybody takes every thread for the same caller, without looking: the floor.
type Anybody struct{ Caller identity.Caller }

// Thread implements identity.Threads.
func (a Anybody) Thread(context.Context, uint32) (identity.Caller, error) { return a.Caller, nil }

// As returns the caller that a process of that user is: spiffe://test/uid/N.
func As(uid, gid uint32) identity.Caller {
	return identity.Caller{
		IDs:     []spiffeid.ID{spiffeid.RequireFromString(fmt.Sprintf("spiffe://test/uid/%d", uid))},
		Source:  identity.Broker,
		Process: identity.Process{UID: uid, GID: gid},
	}
}

// Users identifies threads by their user, and can be told to fail, or to hold
// users up. The zero Users identifies everybody at once.
type Users struct {
	mu      sync.Mutex
	held    map[uint32]chan struct{} // closed to let go
	fail    map[uint32]error
	waiting map[uint32]int
	changed chan struct{} // closed when waiting changes
}

var _ identity.Threads = (*Users)(nil)

// Thread implements identity.Threads.
func (u *Users) Thread(ctx context.Context, tid uint32) (identity.Caller, error) {
	uid, gid, err := owner(tid)
	if err != nil {
		return identity.Caller{}, fmt.Errorf("identifying thread %d: %w: %w", tid, secret.ErrUnavailable, err)
	}
	u.mu.Lock()
	held, fail := u.held[uid], u.fail[uid]
	u.mu.Unlock()
	caller := As(uid, gid)
	caller.Process.PID = int(tid)
	if held != nil {
		u.count(uid, 1)
		defer u.count(uid, -1)
		select {
		case <-held:
		case <-ctx.Done():
			return identity.Caller{Process: caller.Process}, fmt.Errorf("%w: %w", secret.ErrUnavailable, ctx.Err())
		}
	}
	if fail != nil {
		return identity.Caller{Process: caller.Process}, fail
	}
	return caller, nil
}

// Hold makes identifying a user wait until Release.
func (u *Users) Hold(uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.held == nil {
		u.held = map[uint32]chan struct{}{}
	}
	u.held[uid] = make(chan struct{})
}

// Release ends Hold.
func (u *Users) Release(uid uint32) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if held := u.held[uid]; held != nil {
		close(held)
		delete(u.held, uid)
	}
}

// Fail makes identifying a user fail, until err is nil.
func (u *Users) Fail(uid uint32, err error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.fail == nil {
		u.fail = map[uint32]error{}
	}
	u.fail[uid] = err
}

// Await waits until that many threads of a user are held up.
func (u *Users) Await(ctx context.Context, uid uint32, count int) error {
	for {
		u.mu.Lock()
		if u.waiting[uid] == count {
			u.mu.Unlock()
			return nil
		}
		if u.changed == nil {
			u.changed = make(chan struct{})
		}
		changed := u.changed
		u.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (u *Users) count(uid uint32, by int) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.waiting == nil {
		u.waiting = map[uint32]int{}
	}
	u.waiting[uid] += by
	if u.changed != nil {
		close(u.changed)
		u.changed = nil
	}
}

// owner reads a thread's filesystem ids, the last of four, from its status.
func owner(tid uint32) (uid, gid uint32, err error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", tid))
	if err != nil {
		return 0, 0, err
	}
	for line := range strings.Lines(string(status)) {
		var ruid, euid, suid uint32
		switch {
		case strings.HasPrefix(line, "Uid:"):
			_, err = fmt.Sscanf(line, "Uid:%d%d%d%d", &ruid, &euid, &suid, &uid)
		case strings.HasPrefix(line, "Gid:"):
			_, err = fmt.Sscanf(line, "Gid:%d%d%d%d", &ruid, &euid, &suid, &gid)
		}
		if err != nil {
			return 0, 0, err
		}
	}
	return uid, gid, nil
}
