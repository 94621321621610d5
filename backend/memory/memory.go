// SPDX-License-Identifier: Apache-2.0

// Package memory is the backend driver that forgets: records live in the
// process and go with it. It is for development and for tests of what stands
// above, and the simplest reading of the port.
//
// It guarantees all that the port asks, except that Commit makes nothing
// durable. Readers see one cut, because they and the writer exclude each other.
// Memory grows with what is stored; there is no limit but the machine's.
package memory

import (
	"cmp"
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/keyhole-agent/keyhole/backend"
)

// Config says how to make a Backend. The zero Config is complete.
type Config struct {
	Now func() time.Time // for how long batch IDs are known; nil is time.Now
}

// Backend keeps records in memory.
type Backend struct {
	now func() time.Time
	id  [16]byte

	mu      sync.RWMutex // guards everything below
	closed  bool
	seq     backend.Seq
	tables  map[backend.Table]*table
	changes []backend.Change // in order; those up to floor are gone
	floor   backend.Seq
	batches []batch // applied ones by age, for forgetting their IDs
}

type batch struct {
	id   string
	time time.Time
}

var _ backend.Backend = (*Backend)(nil)

// New returns an empty Backend.
func New(config Config) (*Backend, error) {
	b := &Backend{now: config.Now, tables: map[backend.Table]*table{}}
	if b.now == nil {
		b.now = time.Now // the only clock of this package
	}
	if _, err := rand.Read(b.id[:]); err != nil {
		return nil, fmt.Errorf("making a store ID: %w", err)
	}
	for _, t := range backend.Tables {
		b.tables[t] = newTable()
	}
	return b, nil
}

// Info describes the store, whose ID is another one in each process.
func (b *Backend) Info(ctx context.Context) (backend.Info, error) {
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usableLocked(ctx); err != nil {
		return backend.Info{}, err
	}
	return backend.Info{
		Driver: "memory", Port: backend.PortVersion, StoreID: b.id, Epoch: 1, Seq: b.seq, Format: 1,
	}, nil
}

// Get returns the records that exist among keys.
func (b *Backend) Get(ctx context.Context, keys []backend.Key) ([]backend.Record, backend.Seq, error) {
	if err := backend.CheckKeys(keys); err != nil {
		return nil, 0, err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usableLocked(ctx); err != nil {
		return nil, 0, err
	}
	records := make([]backend.Record, 0, len(keys))
	for _, key := range keys {
		if r, ok := b.tables[key.Table].records.Get(key.ID); ok {
			records = append(records, r)
		}
	}
	return records, b.seq, nil
}

// Scan returns a page.
func (b *Backend) Scan(ctx context.Context, q backend.Query) (backend.Page, error) {
	if err := q.Check(); err != nil {
		return backend.Page{}, err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usableLocked(ctx); err != nil {
		return backend.Page{}, err
	}
	return b.tables[q.Table].page(q)
}

// Changes returns changes after a sequence number.
func (b *Backend) Changes(ctx context.Context, after backend.Seq, limit int) ([]backend.Change, error) {
	if err := backend.CheckChanges(limit); err != nil {
		return nil, err
	}
	b.mu.RLock()
	defer b.mu.RUnlock()
	if err := b.usableLocked(ctx); err != nil {
		return nil, err
	}
	if after < b.floor || after > b.seq {
		return nil, fmt.Errorf("%w: after %d of %d to %d", backend.ErrCompacted, after, b.floor, b.seq)
	}
	first, _ := slices.BinarySearchFunc(b.changes, after+1, func(c backend.Change, seq backend.Seq) int {
		return cmp.Compare(c.Seq, seq)
	})
	return slices.Clone(backend.WholeBatches(b.changes[first:], limit)), nil
}

// Health returns nil until Close.
func (b *Backend) Health(ctx context.Context) error {
	b.mu.RLock()
	defer b.mu.RUnlock()
	return b.usableLocked(ctx)
}

// Close forgets everything. Closing again does nothing.
func (b *Backend) Close() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	b.tables, b.changes, b.batches = nil, nil, nil
	return nil
}

func (b *Backend) usableLocked(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	if b.closed {
		return backend.ErrClosed
	}
	return nil
}
