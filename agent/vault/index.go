// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"iter"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"github.com/keyhole-agent/keyhole/secret"
)

// index holds the name of every secret, in the order of their segments, with
// what a listing and an open need to know. It is made at unlock, from the
// sealed records, and follows the commits. Folders are not in it: a folder is
// what some secret lies under.
type index struct {
	mu    sync.RWMutex
	names btree.Map[string, entry] // by sortable(path)
}

type entry struct {
	id      secret.ID
	current secret.Version // 0 for an empty secret
}

// sortable makes byte order the order of segments: "a/b" comes before "a-b",
// and everything below a folder is one range.
func sortable(p secret.Path) string { return strings.ReplaceAll(p.String(), "/", "\x00") }

func (x *index) get(p secret.Path) (entry, bool) {
	name := sortable(p)
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.names.Get(name)
}

func (x *index) set(p secret.Path, e entry) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.names.Set(sortable(p), e)
}

func (x *index) remove(p secret.Path) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.names.Delete(sortable(p))
}

func (x *index) len() int {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.names.Len()
}

// snapshot is the index as it is now. It costs nothing until the index changes.
func (x *index) snapshot() snapshot {
	x.mu.Lock() // copying marks the original as shared
	defer x.mu.Unlock()
	return snapshot{x.names.Copy()}
}

type snapshot struct{ names *btree.Map[string, entry] }

// below yields the secrets under folder that come after the given path, and
// after all that lies under it; the root path for all. The cursor is good until
// the next step.
func (s snapshot) below(folder, after secret.Path) iter.Seq[*cursor] {
	return func(yield func(*cursor) bool) {
		prefix := ""
		if !folder.IsRoot() {
			prefix = sortable(folder) + "\x00"
		}
		next := prefix
		if !after.IsRoot() {
			next = max(next, sortable(after)+behind)
		}
		walk := s.names.Iter()
		for ok := walk.Seek(next); ok && strings.HasPrefix(walk.Key(), prefix); {
			c := cursor{name: walk.Key(), entry: walk.Value(), prefix: len(prefix)}
			if !yield(&c) {
				return
			}
			if c.next == "" {
				ok = walk.Next()
			} else {
				ok = walk.Seek(c.next)
			}
		}
	}
}

// behind, after a name, sorts behind everything below that name: it is the byte
// after the separator, and in no name.
const behind = "\x01"

// cursor is one step of a walk.
type cursor struct {
	name   string
	entry  entry
	prefix int    // bytes of name that all steps share
	next   string // where to go on, when not at the next name
}

// path returns the secret's path. Only parsed names are in the index.
func (c *cursor) path() secret.Path {
	return secret.MustParsePath(strings.ReplaceAll(c.name, "\x00", "/"))
}

// child returns what lies directly below the walk's folder, and whether that is
// a folder itself.
func (c *cursor) child() (path secret.Path, folder bool) {
	name, _, folder := strings.Cut(c.name[c.prefix:], "\x00")
	return secret.MustParsePath(strings.ReplaceAll(c.name[:c.prefix+len(name)], "\x00", "/")), folder
}

// leave makes the walk go on behind the folder that child returned.
func (c *cursor) leave() {
	name, _, _ := strings.Cut(c.name[c.prefix:], "\x00")
	c.next = c.name[:c.prefix+len(name)] + behind
}

// occupied reports whether a secret lies below folder.
func (s snapshot) occupied(folder secret.Path) bool {
	for range s.below(folder, secret.Path{}) {
		return true
	}
	return false
}
