// SPDX-License-Identifier: Apache-2.0

// Package backend is the port behind which sealed records live: the Backend
// interface, its words, and Update, which makes a transaction of it.
//
// A backend stores records and compares revisions. It never sees plaintext and
// it never decides anything: names, versions, policy, encryption and audit are
// the business of the packages above. What it must guarantee:
//
//   - A batch happens whole or not at all. Its conditions are checked against
//     the state before it, in the same atomic step that applies its operations.
//   - Commit returns after its batches are durable.
//   - Sequence numbers grow by one with each applied batch and never repeat; a
//     record's revision is the sequence number of the batch that wrote it.
//   - Get is one consistent cut.
//   - A batch whose ID was applied before is not applied again.
//
// Drivers import this package and secret, and nothing else of the project.
package backend

import (
	"context"
	"errors"
	"fmt"
)

// PortVersion is the version of this port. A driver for another one is refused.
const PortVersion = 1

// Bounds that every driver supports.
const (
	MaxIDBytes   = 255     // of a Key's ID; at least 1
	MaxBodyBytes = 2 << 20 // of a record's body
	MaxBatchOps  = 4096    // operations and conditions in one batch
	MaxScanLimit = 10_000  // records in one page
)

// Table is a space of keys.
type Table uint8

// The tables. Drivers treat all alike; new ones are added at the end.
const (
	Meta     Table = 1 + iota // facts about the store: the locks and the keyring
	Secrets                   // one record per path: secret or folder
	Versions                  // one per version: its wrapped data key and its description
	Payloads                  // one per version: the sealed values
	Policies                  // one per policy
	Sessions                  // break-glass sessions
	Anchors                   // one per node: the last durable head of its audit log
	Applied                   // one per batch ID: kept by the driver, read-only above it
)

// Tables lists them all in order.
var Tables = []Table{Meta, Secrets, Versions, Payloads, Policies, Sessions, Anchors, Applied}

// String returns the table's name, which drivers may use as theirs.
func (t Table) String() string {
	names := [...]string{"meta", "secrets", "versions", "payloads", "policies", "sessions", "anchors", "applied"}
	if t < 1 || int(t) > len(names) {
		return fmt.Sprintf("table %d", uint8(t))
	}
	return names[t-1]
}

// Seq is a position in the order of all applied batches. 0 is before the first.
type Seq uint64

// Key names a record: 1 to MaxIDBytes arbitrary bytes in a table. Within a
// table, keys are ordered by the bytes of ID.
type Key struct {
	Table Table
	ID    string
}

// Hints are what a driver indexes so that records can be found without opening
// them. They are copies: whoever reads a record trusts only what its sealed
// body says.
type Hints struct {
	Parent string // what the record belongs to; "" for nothing
	Empty  int64  // Unix seconds since when a secret is empty; 0 when it is not
	Due    int64  // Unix seconds when somebody must look at it; 0 for never
	Term   uint32 // number of the term key that wraps its data key
}

// Record is a stored record. Body is not modified after it was handed over, in
// either direction.
type Record struct {
	Key   Key
	Rev   Seq // set by the backend; ignored in a Put
	Hints Hints
	Body  []byte
}

// Cond is a condition of a batch: either that Key is at revision Rev, 0 for
// absent; or, when NoChildren is set, that no record of Key's table has Key.ID
// as its Hints.Parent.
type Cond struct {
	Key        Key
	Rev        Seq
	NoChildren bool
}

// Op puts Record, or deletes Record.Key when Delete is set. Deleting what is
// absent is no error.
type Op struct {
	Record Record
	Delete bool
}

// Batch is a conditional write. No key occurs twice in Ops.
type Batch struct {
	ID  [16]byte // to apply it once; zero for no memory of it
	If  []Cond
	Ops []Op
}

// Result is what became of one batch.
type Result struct {
	Seq      Seq  // of the batch when it was applied, now or earlier
	Replayed bool // its ID had been applied before: nothing was done now
	Conflict bool // a condition did not hold: nothing was done
}

// Order is what a Scan is sorted and bounded by.
type Order uint8

// The orders. Records whose hint is 0 are not part of ByEmpty and ByDue.
const (
	ByID     Order = iota // ID, ascending
	ByParent              // only records with Query.Parent; by ID
	ByEmpty               // Hints.Empty ascending up to Query.Until, then ID
	ByDue                 // Hints.Due ascending up to Query.Until, then ID
	ByTerm                // only records with Hints.Term below Query.Term; by ID
)

// Query asks for a page of one table.
type Query struct {
	Table  Table
	Order  Order
	Parent string // for ByParent
	Until  int64  // for ByEmpty and ByDue, inclusive
	Term   uint32 // for ByTerm, exclusive
	Cursor string // Page.Next of the page before; "" for the first
	Limit  int    // 1 to MaxScanLimit
}

// Page is a consistent cut of at most Limit records. Next is "" after the last
// one; otherwise it continues, and neither skips nor repeats a record that did
// not change between the two calls.
type Page struct {
	Records []Record
	Next    string
}

// Change says that a record was written or deleted by the batch at Seq.
type Change struct {
	Seq     Seq
	Key     Key
	Deleted bool
}

// Info describes an open backend.
type Info struct {
	Driver  string   // "sqlite"
	Port    int      // PortVersion it was written for
	StoreID [16]byte // random, made with the store
	Epoch   uint64   // grows when a store moves, so that an old copy can be told
	Seq     Seq      // the last applied
	Durable bool     // survives the process
	Format  int      // of the schema
}

// Errors of a backend, besides those of package secret (ErrUnavailable,
// ErrTampered for a damaged store, ErrNewerFormat, ErrInUse, ErrTooLarge,
// ErrInvalid for a batch or query outside the bounds).
var (
	ErrConflict  = errors.New("conflicting change")     // Update gave up
	ErrCompacted = errors.New("changes no longer kept") // Changes: start over with a Scan
	ErrClosed    = errors.New("backend is closed")      // used after Close
)

// Backend stores sealed records. All methods may be called concurrently.
type Backend interface {
	Info(ctx context.Context) (Info, error)

	// Get returns the records that exist among keys, in the order of keys, and
	// the sequence number of the cut.
	Get(ctx context.Context, keys []Key) ([]Record, Seq, error)

	Scan(ctx context.Context, q Query) (Page, error)

	// Commit applies the batches in order, each on its own terms, with one
	// point of durability for all. An error means that none is known to be
	// applied; with an ID, asking again finds out.
	Commit(ctx context.Context, batches []Batch) ([]Result, error)

	// Changes returns at most limit (1 to MaxScanLimit) changes after the given
	// sequence number, in order and without gaps. The changes of one batch are
	// never split: the first batch is whole even when it has more than limit.
	// ErrCompacted when after is older than what is kept, or not yet reached,
	// which means that it was seen in another store.
	Changes(ctx context.Context, after Seq, limit int) ([]Change, error)

	// Health returns nil when the store can be read and written.
	Health(ctx context.Context) error

	Close() error
}
