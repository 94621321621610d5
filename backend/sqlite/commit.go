// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"time"

	"github.com/keyhole-agent/keyhole/backend"
)

// Old changes and batch IDs are removed whenever the sequence number passes a
// multiple of trimEvery, so that most commits do not touch their pages.
const (
	trimEvery = 64
	trimMost  = 4096 // batch IDs at a time
)

// Commit applies the batches in one SQL transaction, with one sync.
func (b *Backend) Commit(ctx context.Context, batches []backend.Batch) ([]backend.Result, error) {
	for _, batch := range batches {
		if err := batch.Check(); err != nil {
			return nil, err
		}
	}
	var results []backend.Result
	err := b.write(ctx, func(c *conn) error {
		var err error
		results, err = b.commit(c, batches)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("committing to the store: %w", err)
	}
	return results, nil
}

// commit applies batches in one transaction. When none applies, nothing is
// written and COMMIT syncs nothing.
func (b *Backend) commit(c *conn, batches []backend.Batch) (results []backend.Result, err error) {
	err = c.transaction(func() error {
		results, err = b.applyAll(c, batches)
		return err
	})
	return results, err
}

func (b *Backend) applyAll(c *conn, batches []backend.Batch) ([]backend.Result, error) {
	before, err := c.state()
	if err != nil {
		return nil, err
	}
	w := commit{conn: c, now: b.now(), state: before}
	results := make([]backend.Result, len(batches))
	for i, batch := range batches {
		if results[i], err = w.apply(batch); err != nil {
			return nil, err
		}
	}
	if w.state.seq == before.seq {
		return results, nil
	}
	if before.seq/trimEvery != w.state.seq/trimEvery {
		if err := w.trim(); err != nil {
			return nil, err
		}
	}
	_, err = c.exec(`UPDATE store SET seq = ?, floor = ?, changes = ?`,
		int64(w.state.seq), int64(w.state.floor), int64(w.state.changes))
	return results, err
}

// commit is one transaction that applies batches.
type commit struct {
	*conn

	now   time.Time
	state storeState
}

// apply applies one batch unless it is known or a condition does not hold.
// Everything is looked up before anything is written, so that a conflict leaves
// nothing to undo.
func (w *commit) apply(batch backend.Batch) (backend.Result, error) {
	remembered := batch.ID != [16]byte{}
	if remembered {
		seq, err := w.revision(backend.Key{Table: backend.Applied, ID: string(batch.ID[:])})
		if err != nil || seq != 0 {
			return backend.Result{Seq: seq, Replayed: true}, err
		}
	}
	for _, cond := range batch.If {
		holds, err := w.holds(cond)
		if err != nil || !holds {
			return backend.Result{Conflict: true}, err
		}
	}
	w.state.seq++
	for i, op := range batch.Ops {
		if err := w.run(i, op); err != nil {
			return backend.Result{}, err
		}
	}
	if remembered {
		_, err := w.exec(`INSERT INTO applied(id, rev, due, term) VALUES(?, ?, ?, 0)`,
			batch.ID[:], w.seq(), w.now.Unix())
		if err != nil {
			return backend.Result{}, err
		}
	}
	return backend.Result{Seq: w.state.seq}, nil
}

func (w *commit) seq() driver.Value {
	return int64(w.state.seq)
}

// revision returns 0 for an absent record.
func (w *commit) revision(key backend.Key) (rev backend.Seq, err error) {
	err = w.query(w.background, fmt.Sprintf(`SELECT rev FROM %s WHERE id = ?`, key.Table), 1,
		func(row []driver.Value) error {
			var d decoder
			rev = backend.Seq(d.count(row[0]))
			return d.err
		}, []byte(key.ID))
	return rev, err
}

func (w *commit) holds(cond backend.Cond) (bool, error) {
	if !cond.NoChildren {
		rev, err := w.revision(cond.Key)
		return rev == cond.Rev, err
	}
	none := true
	err := w.query(w.background, fmt.Sprintf(`SELECT 1 FROM %s WHERE parent = ? LIMIT 1`, cond.Key.Table), 1,
		func([]driver.Value) error {
			none = false
			return nil
		}, []byte(cond.Key.ID))
	return none, err
}

// run writes the nth operation of the current batch and notes the change.
func (w *commit) run(n int, op backend.Op) error {
	key := op.Record.Key
	if op.Delete {
		deleted, err := w.exec(fmt.Sprintf(`DELETE FROM %s WHERE id = ?`, key.Table), []byte(key.ID))
		if err != nil || deleted == 0 {
			return err
		}
	} else if err := w.put(op.Record); err != nil {
		return err
	}
	w.state.changes++
	_, err := w.exec(`INSERT INTO changes(seq, n, tbl, id, deleted) VALUES(?, ?, ?, ?, ?)`,
		w.seq(), int64(n), int64(key.Table), []byte(key.ID), op.Delete)
	return err
}

func (w *commit) put(r backend.Record) error {
	var body driver.Value // a nil []byte in it would not be NULL to everybody
	if r.Body != nil {
		body = r.Body
	}
	_, err := w.exec(fmt.Sprintf(`INSERT INTO %s(id, %s) VALUES(?, ?, ?, ?, ?, ?, ?)`+
		` ON CONFLICT(id) DO UPDATE SET rev = excluded.rev, parent = excluded.parent, empty = excluded.empty,`+
		` due = excluded.due, term = excluded.term, body = excluded.body`, r.Key.Table, recordColumns),
		[]byte(r.Key.ID), w.seq(), parentOrNull(r.Hints.Parent), numberOrNull(r.Hints.Empty),
		numberOrNull(r.Hints.Due), int64(r.Hints.Term), body)
	return err
}

func parentOrNull(parent string) driver.Value {
	if parent == "" {
		return nil
	}
	return []byte(parent)
}

func numberOrNull(n int64) driver.Value {
	if n == 0 {
		return nil
	}
	return n
}

// trim removes batch IDs and changes that need not be kept.
func (w *commit) trim() error {
	if err := w.trimApplied(); err != nil {
		return err
	}
	if w.state.changes <= backend.KeptChanges {
		return nil
	}
	return w.trimChanges()
}

// trimApplied removes some of the oldest batch IDs that are older than promised.
func (w *commit) trimApplied() error {
	expired := w.now.Add(-backend.KeptBatches).Unix()
	oldest := expired
	err := w.query(w.background, `SELECT due FROM applied ORDER BY rowid LIMIT 1`, 1, func(row []driver.Value) error {
		var d decoder
		oldest = d.integer(row[0])
		return d.err
	})
	if err != nil || oldest >= expired {
		return err
	}
	_, err = w.exec(`DELETE FROM applied WHERE due < ? AND rowid IN (SELECT rowid FROM applied ORDER BY rowid LIMIT ?)`,
		expired, int64(trimMost))
	return err
}

// trimChanges removes whole batches of changes beyond those that are kept.
func (w *commit) trimChanges() error {
	kept := int64(0) // the batch of the oldest change to keep
	err := w.query(w.background, `SELECT seq FROM changes ORDER BY seq, n LIMIT 1 OFFSET ?`, 1,
		func(row []driver.Value) error {
			var d decoder
			kept = d.integer(row[0])
			return d.err
		}, int64(w.state.changes-backend.KeptChanges))
	if err != nil {
		return err
	}
	deleted, err := w.exec(`DELETE FROM changes WHERE seq < ?`, kept)
	if err != nil || deleted == 0 {
		return err
	}
	w.state.changes -= uint64(deleted)
	w.state.floor = backend.Seq(kept - 1)
	return nil
}
