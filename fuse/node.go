// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"sync/atomic"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
)

// The nodes that are always there. The kernel calls the root 1.
const (
	rootID  = 1
	selfID  = 2
	viewsID = 3
)

// kind is what a node is.
type kind uint8

const (
	rootFolder  kind = iota + 1 // holds self and v
	selfLink                    // leads each caller to its view
	viewsFolder                 // v, which holds the views
	folder                      // a folder of a view, its root included
	secretDir                   // a secret: a directory with a file per key
	file                        // a key's value in one version
)

// identifier is what makes a node the one it is; equal identifiers are the same
// node, and stand for the same bytes for ever. Unused fields are zero.
type identifier struct {
	view    string
	kind    kind
	path    secret.Path // of the folder or secret; of a file, the secret's
	secret  secret.ID
	key     secret.Key
	version secret.Version
}

// node is an inode that the kernel knows, or a view's root. Everything but the
// atomics and lookups is immutable.
type node struct {
	identifier
	id     uint64
	parent uint64
	view   *view // nil outside views
	size   int   // of a file, in bytes

	changed atomic.Int64  // modification time, Unix ns
	opened  atomic.Bool   // the kernel may hold content
	stale   atomic.Int64  // when opening ends, Unix ns; 0 while it is the current one
	revised atomic.Uint64 // revision of the secret that superseded it

	lookups uint64 // how often the kernel was told of it; guarded by table.mu
}

// name is the node's name in its parent's directory.
func (n *node) name() string {
	switch n.kind {
	case file:
		return n.key.String()
	case folder, secretDir:
		return n.path.Base()
	}
	return ""
}

// file names the value behind a node of kind file.
func (n *node) file() secret.File {
	return secret.File{Path: n.path, ID: n.secret, Version: n.version, Key: n.key}
}

// supersede ends opening at the given time and reports whether it was open-ended
// before. revision is that of the secret's record that says so.
func (n *node) supersede(end time.Time, revision uint64) bool {
	n.revised.Store(revision)
	return n.stale.CompareAndSwap(0, end.UnixNano())
}

// restore makes the node current again, as the record of that revision says.
func (n *node) restore(revision uint64) {
	if n.stale.Load() != 0 && revision >= n.revised.Load() {
		n.stale.Store(0)
	}
}

// expired reports whether the node was superseded longer than the grace ago.
func (n *node) expired(now time.Time) bool {
	end := n.stale.Load()
	return end != 0 && now.UnixNano() >= end
}
