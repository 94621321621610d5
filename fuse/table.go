// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
)

// table holds the views and the nodes that the kernel refers to. The kernel's
// own cache bounds it: every answer that names a node counts, and what the
// kernel forgets is deleted. It is all that the filesystem remembers, so that
// handing it to another process hands over the mount.
type table struct {
	ids      ids
	idle     time.Duration
	maxViews int

	// generation grows before the nodes are compared with a change. An answer
	// that was looked up under another generation must not be cached: the
	// comparison may have missed it.
	generation atomic.Uint64

	// orphaned has a value when there are orphans.
	orphaned chan struct{}

	mu         sync.RWMutex
	orphans    []uint64 // files whose view was forgotten while the kernel may have their content
	nodes      map[uint64]*node
	views      map[string]*view
	identities map[viewKey]*view
}

func newTable(idle time.Duration, maxViews int, now time.Time) *table {
	t := &table{
		ids: newIDs(), idle: idle, maxViews: maxViews, orphaned: make(chan struct{}, 1),
		nodes: map[uint64]*node{}, views: map[string]*view{}, identities: map[viewKey]*view{},
	}
	for id, what := range map[uint64]kind{rootID: rootFolder, selfID: selfLink, viewsID: viewsFolder} {
		n := &node{identifier: identifier{kind: what}, id: id, parent: rootID}
		n.changed.Store(now.UnixNano())
		t.nodes[id] = n
	}
	return t
}

// node returns the node with that number, or errStale.
func (t *table) node(id uint64) (*node, error) {
	t.mu.RLock()
	n := t.nodes[id]
	t.mu.RUnlock()
	if n == nil {
		return nil, errStale
	}
	return n, nil
}

// viewNamed returns the root of a view, which the kernel is about to be told of.
func (t *table) viewNamed(name string, now time.Time) (*node, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	v := t.views[name]
	if v == nil {
		return nil, secret.ErrNotFound
	}
	v.used.Store(now.UnixNano())
	t.countLocked(v.root)
	return v.root, nil
}

// told returns the node that is the same as want, which the kernel is about to
// be told of, and whether it may cache that. seen is the generation from before
// want was looked up.
func (t *table) told(want *node, seen uint64) (n *node, cacheable bool, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.views[want.view.name] != want.view {
		return nil, false, errStale // forgotten meanwhile
	}
	n = t.numberLocked(want)
	if n == want {
		n.view.paths[n.path] = append(n.view.paths[n.path], n)
	}
	t.countLocked(n)
	return n, t.generation.Load() == seen, nil
}

// numberLocked gives want its number and enters it, or returns the node that it
// is the same as.
func (t *table) numberLocked(want *node) *node {
	for salt := uint64(0); ; salt++ {
		id := t.ids.node(want.identifier, salt)
		if id <= viewsID || id == ^uint64(0) { // 0 is none, and go-fuse has its own idea of the last one
			continue
		}
		switch n := t.nodes[id]; {
		case n == nil:
			want.id = id
			t.nodes[id] = want
			return want
		case n.identifier == want.identifier:
			return n
		}
	}
}

func (t *table) countLocked(n *node) {
	if n.lookups == 0 {
		n.view.known++
	}
	n.lookups++
}

// forget takes back count answers that named the node. The kernel may take back
// more than were given, when the view was forgotten in between.
func (t *table) forget(id, count uint64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil || n.view == nil || n.lookups == 0 {
		return
	}
	if n.lookups > count {
		n.lookups -= count
		return
	}
	n.lookups = 0
	n.view.known--
	if n == n.view.root {
		return // it lives as long as its view
	}
	delete(t.nodes, id)
	rest := slices.DeleteFunc(n.view.paths[n.path], func(other *node) bool { return other == n })
	if len(rest) == 0 {
		delete(n.view.paths, n.path)
		return
	}
	n.view.paths[n.path] = rest
}

// takeOrphans returns the orphans, which are then somebody else's to care for.
func (t *table) takeOrphans() []uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	orphans := t.orphans
	t.orphans = nil
	return orphans
}

// group is the nodes of one view at one path.
type group struct {
	view  *view
	path  secret.Path
	nodes []*node
}

// affected returns what the changes may be about: the nodes at the changed paths
// and at the folders above them, or all nodes.
func (t *table) affected(changes secret.Changes) []group {
	paths := map[secret.Path]struct{}{}
	for _, path := range changes.Paths {
		for ; !path.IsRoot(); path = path.Parent() {
			paths[path] = struct{}{}
		}
	}
	var groups []group
	t.mu.RLock()
	defer t.mu.RUnlock()
	for _, v := range t.views {
		interesting := maps.Keys(paths)
		if changes.All {
			interesting = maps.Keys(v.paths)
		}
		for path := range interesting {
			if nodes := v.paths[path]; len(nodes) > 0 {
				groups = append(groups, group{v, path, slices.Clone(nodes)})
			}
		}
	}
	return groups
}

// size returns how many views and nodes there are, the views' roots included.
func (t *table) size() (views, nodes int) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return len(t.views), len(t.nodes)
}
