// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/goleak"

	"github.com/keyhole-agent/keyhole/fuse"
	"github.com/keyhole-agent/keyhole/fuse/fusetest"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// daemon is the part that serves a mount. Its methods are called by the tests,
// many at a time.
type daemon struct {
	source  *fusetest.Source
	users   *fusetest.Users
	fs      *fuse.FS
	advance atomic.Int64 // what the clock is ahead
	ignored goleak.Option
	read    handedOut
	gate    gate
	held    chan struct{} // closed when somebody is at the gate
}

type PutArguments struct {
	Path   string
	Values map[string]string
}

type RuleArguments struct {
	UID   uint32
	Path  string
	Error string // "" for none
	On    bool
	Count int
}

type nothing = struct{}

func (d *daemon) Mount(s Settings, _ *nothing) (err error) {
	d.ignored = goleak.IgnoreCurrent()
	config := fuse.Config{
		Dir: s.Dir, Private: s.Private, SelfLink: s.SelfLink,
		Names: names{d.source, &d.gate}, Files: files{d.source, &d.read}, Refusals: d.source, Feed: d.source, Threads: threads{d.users},
		Logger:   slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError + 1})),
		Deadline: s.Deadline, Idle: s.Idle, MaxViews: s.MaxViews,
		Now: func() time.Time { return time.Now().Add(time.Duration(d.advance.Load())) },
	}
	if s.Anybody {
		config.Threads = fusetest.Anybody{Caller: fusetest.As(s.UID, s.UID)}
	}
	d.fs, err = fuse.New(config)
	return err
}

// files panics when a secret called panic is opened, and remembers what was read.
type files struct {
	*fusetest.Source
	read *handedOut
}

type handedOut struct {
	mu     sync.Mutex
	values []secret.Values
}

func (f files) Open(ctx context.Context, caller, view identity.Caller, file secret.File) error {
	if file.Path == secret.MustParsePath("panic") {
		panic("as the test wants it")
	}
	return f.Source.Open(ctx, caller, view, file)
}

func (f files) Read(ctx context.Context, view identity.Caller, file secret.File) (secret.Values, error) {
	values, err := f.Source.Read(ctx, view, file)
	f.read.mu.Lock()
	defer f.read.mu.Unlock()
	f.read.values = append(f.read.values, values)
	return values, err
}

// threads says nothing about those who fail with errNobody.
type threads struct{ *fusetest.Users }

var errNobody = errors.New("nobody")

func (i threads) Thread(ctx context.Context, tid uint32) (identity.Caller, error) {
	caller, err := i.Users.Thread(ctx, tid)
	if err != nil && err.Error() == errNobody.Error() {
		return identity.Caller{Process: caller.Process}, nil
	}
	return caller, err
}

// names can hold up one answer, after it was found.
type names struct {
	*fusetest.Source
	gate *gate
}

type gate struct {
	mu            sync.Mutex
	path          secret.Path
	reached, open chan struct{} // nil when nobody is to be held up
}

func (n names) Look(ctx context.Context, view identity.Caller, path secret.Path) (secret.Entry, secret.Info, error) {
	entry, info, err := n.Source.Look(ctx, view, path)
	n.gate.mu.Lock()
	reached, open := n.gate.reached, n.gate.open
	if path != n.gate.path || reached == nil {
		n.gate.mu.Unlock()
		return entry, info, err
	}
	n.gate.reached = nil
	n.gate.mu.Unlock()
	close(reached)
	<-open
	return entry, info, err
}

// HoldLook holds up the next answer about a path.
func (d *daemon) HoldLook(path string, _ *nothing) error {
	d.gate.mu.Lock()
	defer d.gate.mu.Unlock()
	d.gate.path = secret.MustParsePath(path)
	d.gate.reached, d.gate.open = make(chan struct{}), make(chan struct{})
	d.held = d.gate.reached
	return nil
}

// AwaitLook waits for somebody who is held up.
func (d *daemon) AwaitLook(nothing, *nothing) error {
	ctx, cancel := background()
	defer cancel()
	select {
	case <-d.held:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// ReleaseLook lets go whom HoldLook held up.
func (d *daemon) ReleaseLook(nothing, *nothing) error {
	close(d.gate.open)
	return nil
}

// Unwiped tells how many of the values that were read still have their bytes.
func (d *daemon) Unwiped(_ nothing, reply *int) error {
	d.read.mu.Lock()
	defer d.read.mu.Unlock()
	for _, values := range d.read.values {
		for _, value := range values.All() {
			if bytes.ContainsFunc(value, func(r rune) bool { return r != 0 }) {
				*reply++
			}
		}
	}
	return nil
}

// Unmount closes the filesystem and looks for goroutines that it left.
func (d *daemon) Unmount(nothing, *nothing) error {
	if d.fs == nil {
		return nil
	}
	ctx, cancel := background()
	defer cancel()
	err := d.fs.Close(ctx)
	d.fs = nil
	return errors.Join(err, goleak.Find(d.ignored, goleak.IgnoreAnyFunction("net/rpc.(*service).call")))
}

func (d *daemon) Put(a PutArguments, _ *nothing) error { return d.source.Put(a.Path, a.Values) }

func (d *daemon) Delete(path string, _ *nothing) error { return d.source.Delete(path, 0) }

func (d *daemon) Purge(path string, _ *nothing) error {
	d.source.Purge(path)
	return nil
}

func (d *daemon) Hide(a RuleArguments, _ *nothing) error {
	d.source.Hide(nameOf(a.UID), a.Path, a.On)
	return nil
}

func (d *daemon) Forbid(a RuleArguments, _ *nothing) error {
	d.source.Forbid(nameOf(a.UID), a.Path, a.On)
	return nil
}

func (d *daemon) Fail(a RuleArguments, _ *nothing) error {
	d.source.Fail(a.Path, errorNamed(a.Error))
	return nil
}

func (d *daemon) EndFeed(nothing, *nothing) error {
	d.source.EndFeed(secret.ErrUnavailable)
	return nil
}

func (d *daemon) FailUser(a RuleArguments, _ *nothing) error {
	d.users.Fail(a.UID, errorNamed(a.Error))
	return nil
}

func (d *daemon) Hold(uid uint32, _ *nothing) error {
	d.users.Hold(uid)
	return nil
}

func (d *daemon) Release(uid uint32, _ *nothing) error {
	d.users.Release(uid)
	return nil
}

func (d *daemon) Await(a RuleArguments, _ *nothing) error {
	ctx, cancel := background()
	defer cancel()
	return d.users.Await(ctx, a.UID, a.Count)
}

func (d *daemon) Settle(nothing, *nothing) error {
	ctx, cancel := background()
	defer cancel()
	return d.source.Settle(ctx)
}

func (d *daemon) Advance(by time.Duration, _ *nothing) error {
	d.advance.Add(int64(by))
	return nil
}

func (d *daemon) Refused(_ nothing, reply *[]string) error {
	*reply = d.source.Refused()
	return nil
}

func (d *daemon) Stats(_ nothing, reply *fuse.Stats) error {
	*reply = d.fs.Stats()
	return nil
}

// Holds tells whether the memory that replies are made in holds the text.
func (d *daemon) Holds(text string, reply *bool) error {
	*reply = bytes.Contains(d.fs.ReplyMemory(), []byte(text))
	return nil
}

func nameOf(uid uint32) string { return fusetest.As(uid, uid).IDs[0].String() }

// errorNamed is how an error travels to the daemon.
func errorNamed(name string) error {
	if name == "" {
		return nil
	}
	for _, err := range []error{
		secret.ErrNotFound, secret.ErrDenied, secret.ErrUnauthenticated, secret.ErrExpired, secret.ErrLimited,
		secret.ErrUnavailable, secret.ErrSealed, secret.ErrTampered,
	} {
		if err.Error() == name {
			return fmt.Errorf("as the test wants it: %w", err)
		}
	}
	return errors.New(name)
}
