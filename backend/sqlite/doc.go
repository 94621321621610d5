// SPDX-License-Identifier: Apache-2.0

// Package sqlite is the default backend driver: one SQLite database in WAL mode,
// on a local disk of this node.
//
// It guarantees:
//
//   - Commit returns after its batches were synced: one fsync of the WAL for all
//     of them. (Every 4,000 pages of WAL a commit also checkpoints, which syncs
//     three times more.) What was recovered from a WAL at Open is synced before
//     anybody sees it.
//   - Get, a Scan's page and Changes each see one snapshot, and never wait for a
//     commit.
//   - Only one process has a store open. Another one gets secret.ErrInUse.
//   - A store whose files were moved, deleted or replaced while open takes no
//     further commit: secret.ErrUnavailable.
//   - Deleted bytes are overwritten with zeros in the database at once, and are
//     gone from the WAL after Compact. What the disk itself keeps of overwritten
//     blocks is beyond it.
//   - A store of an older format is copied, then upgraded in one transaction. One
//     of a newer format is refused with secret.ErrNewerFormat and left alone.
//
// It does not guarantee anything on a network filesystem, whose locks and syncs
// it cannot judge, nor against somebody who can write to its folder: that is
// why it refuses such a folder, and why the records are sealed above.
//
// SQLite offers its "defensive" switch to C callers only; in its place every
// connection distrusts the schema, checks cell sizes, and Open refuses a store
// with tables, indexes, triggers or views that its format does not have.
package sqlite
