// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// follower is the one goroutine that tells the kernel of changes. It compares
// what the kernel knows with what each view may see now, marks what differs, and
// then, holding no lock, writes the notifications.
type follower struct {
	tree    *tree
	device  *device
	changes chan secret.Changes // from read to run
	applied chan struct{}       // and back

	mu    sync.Mutex
	lanes map[*view][]*node // names that a goroutine of the view is to drop
	lane  sync.WaitGroup
}

func newFollower(t *tree, d *device) *follower {
	return &follower{tree: t, device: d, changes: make(chan secret.Changes), applied: make(chan struct{}), lanes: map[*view][]*node{}}
}

// start starts the goroutines; they end with ctx.
func (f *follower) start(ctx context.Context, running *sync.WaitGroup) {
	running.Go(func() { f.read(ctx) })
	running.Go(func() { f.run(ctx); f.lane.Wait() })
}

// read takes changes from the feed, the next ones when run is done with those
// before. Without a feed the kernel is not allowed to keep anything: slower, and
// never out of date.
func (f *follower) read(ctx context.Context) {
	for {
		changes, err := f.tree.Feed.Next(ctx)
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			f.tree.Logger.Error("changes can no longer be followed; names and attributes are not cached from now on", "error", err)
			f.tree.blind.Store(true)
			changes.All = true
		}
		select {
		case f.changes <- changes:
		case <-ctx.Done():
			return
		}
		select {
		case <-f.applied:
		case <-ctx.Done():
			return
		}
		if err != nil {
			return
		}
	}
}

// run writes notifications; nobody else does.
func (f *follower) run(ctx context.Context) {
	for {
		select {
		case changes := <-f.changes:
			if f.tree.blind.Load() {
				f.forgetFiles()
			} else {
				f.apply(changes)
			}
			select {
			case f.applied <- struct{}{}:
			case <-ctx.Done():
				return
			}
		case <-f.tree.table.orphaned:
			f.send(notices{revoked: f.tree.table.takeOrphans()})
		case <-ctx.Done():
			return
		}
	}
}

// apply makes the kernel's knowledge agree with the changes.
func (f *follower) apply(changes secret.Changes) {
	f.tree.table.generation.Add(1)
	var due notices
	for _, g := range f.tree.table.affected(changes) {
		f.tree.review(g, changes.All, &due)
	}
	f.send(due)
}

// forgetFiles makes the kernel look up every file again, and read its bytes.
func (f *follower) forgetFiles() {
	f.tree.table.generation.Add(1)
	var due notices
	for _, g := range f.tree.table.affected(secret.Changes{All: true}) {
		for _, n := range g.nodes {
			if n.kind == file {
				due.names = append(due.names, n)
				due.revoked = append(due.revoked, n.id)
			}
		}
	}
	f.send(due)
}

// notices are the notifications that a change makes due.
type notices struct {
	revoked []uint64 // files whose content must go
	names   []*node  // nodes that their names no longer stand for
}

// send writes content first, because that is what protects, then names from the
// leaves to the root.
func (f *follower) send(due notices) {
	var failed []error
	for _, id := range due.revoked {
		failed = append(failed, f.device.dropContent(id))
	}
	f.failed(failed)
	slices.SortStableFunc(due.names, func(a, b *node) int { return cmp.Compare(b.depth(), a.depth()) })
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, n := range due.names {
		waiting, busy := f.lanes[n.view]
		f.lanes[n.view] = append(waiting, n)
		if !busy {
			f.lane.Go(func() { f.drop(n.view) })
		}
	}
}

// drop drops the names of one view. The kernel lets it wait for a directory's
// lock, which a user of the view can hold for as long as it likes: with getdents
// into memory whose page fault it does not serve. Only that view may wait then.
func (f *follower) drop(v *view) {
	for {
		f.mu.Lock()
		names := f.lanes[v]
		if len(names) == 0 {
			delete(f.lanes, v)
			f.mu.Unlock()
			return
		}
		f.lanes[v] = nil
		f.mu.Unlock()
		var failed []error
		for _, n := range names {
			failed = append(failed, f.device.dropName(n.parent, n.name()))
		}
		f.failed(failed)
	}
}

func (f *follower) failed(failed []error) {
	if err := errors.Join(failed...); err != nil && !errors.Is(err, unix.ENODEV) && !errors.Is(err, unix.ENOTCONN) {
		f.tree.Logger.Error("telling the kernel of changes", "error", err)
	}
}

// depth orders nodes so that what is in a directory comes behind it.
func (n *node) depth() int {
	depth := len(n.path.String())
	if n.kind == file {
		depth++
	}
	return depth
}

// review compares the nodes of one view at one path with what is there now. all
// says that the permissions may have changed, too.
func (t *tree) review(g group, all bool, due *notices) {
	request := t.request()
	entry, info, err := t.Names.Look(t.ctx, g.view.as(0, request), g.path)
	gone := errors.Is(err, secret.ErrNotFound) || errors.Is(err, secret.ErrDenied)
	if err != nil && !gone {
		// Nothing is known: the names stay, and what may be secret goes.
		for _, n := range g.nodes {
			if n.opened.Load() {
				due.revoked = append(due.revoked, n.id)
			}
		}
		return
	}
	for _, n := range g.nodes {
		switch n.kind {
		case folder:
			if gone || !entry.Folder {
				due.names = append(due.names, n)
			}
		case secretDir:
			if gone || entry.Folder || info.ID != n.secret {
				due.names = append(due.names, n)
			}
		case file:
			t.reviewFile(n, info, gone || entry.Folder || info.ID != n.secret, all, due)
		}
	}
}

func (t *tree) reviewFile(n *node, info secret.Info, gone, all bool, due *notices) {
	_, found := sizeOf(info, n.key)
	if !gone && found && info.Current == n.version {
		n.restore(info.Revision)
	} else if n.supersede(t.Now().Add(t.Grace), info.Revision) {
		due.names = append(due.names, n)
	}
	if n.opened.Load() && (gone || !t.served(n, info, all)) {
		due.revoked = append(due.revoked, n.id)
	}
}

// served reports whether a view may still read what it has open. Only asking for
// the bytes tells whether permissions allow it; a refusal is audited as the
// view's.
func (t *tree) served(n *node, info secret.Info, all bool) bool {
	if !all && n.version == info.Current {
		return true
	}
	if !all {
		for _, version := range info.Versions {
			if version.Version == n.version {
				return version.State == secret.Live
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.ctx, t.Deadline)
	defer cancel()
	request := t.request()
	values, err := t.Files.Read(ctx, n.view.as(0, request), n.file())
	values.Wipe()
	t.status("review", request, err)
	return err == nil
}
