// SPDX-License-Identifier: Apache-2.0

package memory

import (
	"context"
	"slices"

	"github.com/keyhole-agent/keyhole/backend"
)

// Commit applies batches in order.
func (b *Backend) Commit(ctx context.Context, batches []backend.Batch) ([]backend.Result, error) {
	for _, batch := range batches {
		if err := batch.Check(); err != nil {
			return nil, err
		}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err := b.usableLocked(ctx); err != nil {
		return nil, err
	}
	results := make([]backend.Result, len(batches))
	for i, batch := range batches {
		results[i] = b.applyLocked(batch)
	}
	b.forgetLocked()
	return results, nil
}

func (b *Backend) applyLocked(given backend.Batch) backend.Result {
	id := string(given.ID[:])
	remembered := given.ID != [16]byte{}
	if remembered {
		if before, ok := b.tables[backend.Applied].records.Get(id); ok {
			return backend.Result{Seq: before.Rev, Replayed: true}
		}
	}
	for _, cond := range given.If {
		if !b.holdsLocked(cond) {
			return backend.Result{Conflict: true}
		}
	}
	b.seq++
	for _, op := range given.Ops {
		b.writeLocked(op)
	}
	if remembered {
		now := b.now()
		b.tables[backend.Applied].put(backend.Record{
			Key:   backend.Key{Table: backend.Applied, ID: id},
			Rev:   b.seq,
			Hints: backend.Hints{Due: now.Unix()},
		})
		b.batches = append(b.batches, batch{id: id, time: now})
	}
	return backend.Result{Seq: b.seq}
}

func (b *Backend) holdsLocked(cond backend.Cond) bool {
	t := b.tables[cond.Key.Table]
	if cond.NoChildren {
		return !t.hasChildren(cond.Key.ID)
	}
	record, _ := t.records.Get(cond.Key.ID)
	return record.Rev == cond.Rev
}

func (b *Backend) writeLocked(op backend.Op) {
	record := op.Record
	t := b.tables[record.Key.Table]
	if op.Delete {
		if !t.remove(record.Key.ID) {
			return
		}
	} else {
		record.Rev = b.seq
		t.put(record)
	}
	b.changes = append(b.changes, backend.Change{Seq: b.seq, Key: record.Key, Deleted: op.Delete})
}

// forgetLocked drops the oldest changes and batch IDs beyond what is promised.
func (b *Backend) forgetLocked() {
	// Half as much again is kept, so that cutting the slice is rare.
	if len(b.changes) > backend.KeptChanges*3/2 {
		cut := len(b.changes) - backend.KeptChanges
		for cut > 0 && b.changes[cut].Seq == b.changes[cut-1].Seq {
			cut--
		}
		if cut > 0 {
			b.floor = b.changes[cut-1].Seq
			b.changes = slices.Clone(b.changes[cut:])
		}
	}
	oldest := b.now().Add(-backend.KeptBatches)
	for len(b.batches) > 0 && b.batches[0].time.Before(oldest) {
		b.tables[backend.Applied].remove(b.batches[0].id)
		b.batches = b.batches[1:]
	}
}
