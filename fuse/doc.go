// SPDX-License-Identifier: Apache-2.0

// Package fuse shows secrets as read-only files, to each identity its own.
//
// Inside the mount there is
//
//	self        a symbolic link; reading it identifies the caller, "v/<view>"
//	v/<view>/   the tree of one set of SPIFFE IDs, uid and gid; v cannot be listed
//
// and in a view every folder and secret is a directory (0500) and every key a
// file (0400) of the view's uid and gid, with the value's exact bytes.
//
// # What it guarantees
//
//   - Every open is authorized, for the process that opens and for the view that
//     it goes through. Names and attributes are those that the view's identity
//     may list; the mode keeps other users out of it.
//   - A file is one immutable byte string. A new version is another inode, so a
//     reader sees one version from open to close, and never an older one after a
//     newer. A superseded inode can be opened for a grace period more; then
//     ESTALE makes the kernel look up the name again by itself.
//   - What may no longer be read leaves the kernel's cache, and reading through
//     an open descriptor is then refused.
//   - Nothing can be changed: EROFS, or EACCES where the mode speaks first.
//   - A caller who cannot be identified in time is refused, and delays nobody else.
//
// # What it does not
//
// An open descriptor is a capability: who inherits or receives it reads what its
// opener could, until that is revoked. Pages in the kernel's cache are not
// encrypted (they are never swapped). A file that was read and has expired
// since stays readable through descriptors opened before.
//
// # How it can deadlock, and why it does not
//
// The kernel holds a directory's lock while it waits for LOOKUP and READDIR, and
// a page's lock while it waits for READ; a notification about either waits for
// the same lock. So these handlers never wait for anything but the local store,
// and one goroutine of its own, which holds no lock, writes the notifications.
// A user can hold such a lock for as long as it likes, by listing a directory
// into memory whose page faults it serves itself; so the names of each view are
// dropped by a goroutine of that view, and nobody else waits. (The content that
// a revocation drops takes no such lock.) The agent must not touch its own mount,
// for the same reason. A caller inside
// OPEN or READLINK cannot be killed while it waits, hence the deadline.
package fuse
