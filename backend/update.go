// SPDX-License-Identifier: Apache-2.0

package backend

import (
	"context"
	"fmt"
)

// maxAttempts bounds how often Update tries again. Each conflict means that
// somebody else succeeded, so this many in a row is a store under siege.
const maxAttempts = 100

// Store is what Update needs: a Backend, or something that commits for one.
type Store interface {
	Get(ctx context.Context, keys []Key) ([]Record, Seq, error)
	Apply(ctx context.Context, batch Batch) (Result, error)
}

// Tx is one attempt of an Update. What it reads becomes a condition of the
// batch that it writes.
type Tx struct {
	ctx   context.Context
	store Store
	batch Batch
	seen  map[Key]Record // Rev 0: known to be absent
}

// Update calls change with a transaction and commits what it did. When a record
// that it read has changed meanwhile, it starts over with a new Tx, so change
// must have no effect beyond its Tx. A change that writes nothing commits
// nothing.
//
// Errors: that of change, that of the store, ErrConflict after 100 attempts.
func Update(ctx context.Context, store Store, id [16]byte, change func(*Tx) error) (Result, error) {
	for range maxAttempts {
		tx := &Tx{ctx: ctx, store: store, batch: Batch{ID: id}, seen: map[Key]Record{}}
		if err := change(tx); err != nil {
			return Result{}, err
		}
		if len(tx.batch.Ops) == 0 {
			return Result{}, nil
		}
		result, err := store.Apply(ctx, tx.batch)
		if err != nil {
			return Result{}, err
		}
		if !result.Conflict {
			return result, nil
		}
	}
	return Result{}, fmt.Errorf("%w: %d attempts in a row met another writer; try again later", ErrConflict, maxAttempts)
}

// Get reads the given keys in one cut. Of a key that is absent, the result has
// the zero Rev. Results are in the order of keys.
func (tx *Tx) Get(keys ...Key) ([]Record, error) {
	records, _, err := tx.store.Get(tx.ctx, keys)
	if err != nil {
		return nil, err
	}
	result := make([]Record, len(keys))
	for i, key := range keys {
		result[i] = Record{Key: key}
		if len(records) > 0 && records[0].Key == key {
			result[i], records = records[0], records[1:]
		}
		tx.require(result[i])
	}
	return result, nil
}

func (tx *Tx) require(r Record) {
	if _, done := tx.seen[r.Key]; done {
		return // the first read decides; a second, different one conflicts at commit
	}
	tx.seen[r.Key] = r
	tx.batch.If = append(tx.batch.If, Cond{Key: r.Key, Rev: r.Rev})
}

// RequireNoChildren makes the commit depend on nothing having key as its parent.
func (tx *Tx) RequireNoChildren(key Key) {
	tx.batch.If = append(tx.batch.If, Cond{Key: key, NoChildren: true})
}

// Put writes a record.
func (tx *Tx) Put(r Record) { tx.batch.Ops = append(tx.batch.Ops, Op{Record: r}) }

// Delete removes a record.
func (tx *Tx) Delete(key Key) {
	tx.batch.Ops = append(tx.batch.Ops, Op{Record: Record{Key: key}, Delete: true})
}
