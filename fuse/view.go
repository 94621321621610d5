// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// viewKey tells identities apart: who they are, and whom their files belong to.
type viewKey struct {
	ids      string // sorted, one per line
	uid, gid uint32
}

func viewKeyOf(caller identity.Caller) viewKey {
	key := viewKey{uid: caller.Process.UID, gid: caller.Process.GID}
	if len(caller.IDs) == 1 { // the usual case, without allocating
		key.ids = caller.IDs[0].String()
		return key
	}
	texts := make([]string, len(caller.IDs))
	for i, id := range caller.IDs {
		texts[i] = id.String()
	}
	slices.Sort(texts)
	key.ids = strings.Join(slices.Compact(texts), "\n")
	return key
}

// view is the tree of one identity.
type view struct {
	name   string
	key    viewKey
	caller identity.Caller // the identity, without a process of its own
	root   *node
	used   atomic.Int64 // when somebody was last led here, Unix ns

	// Guarded by table.mu.
	paths map[secret.Path][]*node // every node of the view but its root
	known int                     // nodes that the kernel refers to
}

// as returns the view's identity for one request of the given thread.
func (v *view) as(thread uint32, request string) identity.Caller {
	caller := v.caller
	caller.Process.PID = int(thread)
	caller.Request = request
	return caller
}

// view returns the view of caller, which it makes when there is none. caller has
// at least one ID.
func (t *table) view(caller identity.Caller, now time.Time) *view {
	key := viewKeyOf(caller)
	t.mu.RLock()
	v := t.identities[key]
	t.mu.RUnlock()
	if v == nil {
		v = t.makeView(key, caller, now)
	}
	v.used.Store(now.UnixNano())
	return v
}

func (t *table) makeView(key viewKey, caller identity.Caller, now time.Time) *view {
	name := t.ids.viewName(key)
	t.mu.Lock()
	defer t.mu.Unlock()
	if v := t.identities[key]; v != nil {
		return v
	}
	t.makeRoomLocked(now)
	v := &view{name: name, key: key, paths: map[secret.Path][]*node{}}
	v.caller = identity.Caller{
		IDs:     slices.Clone(caller.IDs),
		Source:  caller.Source,
		Process: identity.Process{UID: key.uid, GID: key.gid},
	}
	v.used.Store(now.UnixNano())
	v.root = &node{identifier: identifier{view: name, kind: folder}, parent: viewsID, view: v}
	v.root.changed.Store(now.UnixNano())
	t.numberLocked(v.root)
	t.views[name] = v
	t.identities[key] = v
	return v
}

// makeRoomLocked forgets views: those that were idle long enough, and, when there
// are still too many, the one that was unused longest, if possible one that the
// kernel does not refer to. Forgetting is always safe, because a view that is
// made again has the same name and the same nodes: whoever stands in the old one
// gets ESTALE, at which the kernel looks up again. What the kernel has of the
// content goes, because nobody could revoke it any more.
func (t *table) makeRoomLocked(now time.Time) {
	idle := now.Add(-t.idle).UnixNano()
	var oldest *view
	for _, v := range t.views {
		switch {
		case v.known == 0 && v.used.Load() < idle:
			t.dropLocked(v)
		case oldest == nil, older(v, oldest):
			oldest = v
		}
	}
	if len(t.views) >= t.maxViews && oldest != nil {
		t.dropLocked(oldest)
	}
}

func older(a, b *view) bool {
	if (a.known == 0) != (b.known == 0) {
		return a.known == 0
	}
	return a.used.Load() < b.used.Load()
}

func (t *table) dropLocked(v *view) {
	for _, nodes := range v.paths {
		for _, n := range nodes {
			delete(t.nodes, n.id)
			if n.opened.Load() {
				t.orphans = append(t.orphans, n.id)
			}
		}
	}
	if len(t.orphans) > 0 {
		select {
		case t.orphaned <- struct{}{}:
		default: // it has its value
		}
	}
	delete(t.nodes, v.root.id)
	delete(t.views, v.name)
	delete(t.identities, v.key)
}
