// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"cmp"
	"context"
	"database/sql/driver"
	"fmt"
	"strings"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

const (
	recordColumns = "rev, parent, empty, due, term, body"
	maxArms       = 32       // keys of one statement
	maxPageBytes  = 16 << 20 // bodies in a page, unless its first record alone is larger
)

// storeState is the row of table store.
type storeState struct {
	id      [16]byte
	epoch   uint64
	seq     backend.Seq
	floor   backend.Seq
	changes uint64
}

func (c *conn) state() (storeState, error) {
	var s storeState
	found := false
	err := c.query(c.background, `SELECT id, epoch, seq, floor, changes FROM store`, 5, func(row []driver.Value) error {
		var d decoder
		found = copy(s.id[:], d.bytes(row[0])) == len(s.id)
		s.epoch = d.count(row[1])
		s.seq, s.floor, s.changes = backend.Seq(d.count(row[2])), backend.Seq(d.count(row[3])), d.count(row[4])
		return d.err
	})
	if err == nil && !found {
		err = fmt.Errorf("%w: the store does not say which one it is", secret.ErrTampered)
	}
	return s, err
}

// Info describes the store.
func (b *Backend) Info(ctx context.Context) (backend.Info, error) {
	info := backend.Info{
		Driver: "sqlite", Port: backend.PortVersion, StoreID: b.storeID, Epoch: b.epoch,
		Durable: true, Format: b.schema.format,
	}
	err := b.read(ctx, func(c *conn) error {
		state, err := c.state()
		info.Seq = state.seq
		return err
	})
	if err != nil {
		return backend.Info{}, err
	}
	return info, nil
}

// Get returns the records that exist among keys. Up to 32 keys are one SQL
// statement; more are several in one snapshot.
func (b *Backend) Get(ctx context.Context, keys []backend.Key) ([]backend.Record, backend.Seq, error) {
	if err := backend.CheckKeys(keys); err != nil {
		return nil, 0, err
	}
	cut := cut{records: make([]backend.Record, 0, len(keys))}
	err := b.read(ctx, func(c *conn) error {
		if len(keys) <= maxArms {
			return cut.get(c, keys)
		}
		return c.snapshot(func() error {
			for len(keys) > 0 {
				n := min(len(keys), maxArms)
				if err := cut.get(c, keys[:n]); err != nil {
					return err
				}
				keys = keys[n:]
			}
			return nil
		})
	})
	if err != nil {
		return nil, 0, err
	}
	return cut.records, cut.seq, nil
}

// cut is what a Get collects.
type cut struct {
	records []backend.Record
	seq     backend.Seq
}

// get reads the keys and the sequence number in one statement. It does not heed
// a context: a statement that could be cancelled takes twice as long.
func (t *cut) get(c *conn, keys []backend.Key) error {
	var shape [1 + maxArms]byte
	shape[0] = 'G' // as no SQL text begins
	for i, key := range keys {
		shape[1+i] = byte(key.Table)
	}
	s, err := c.get(shape[:1+len(keys)], keys)
	if err != nil {
		return err
	}
	c.args = c.args[:0]
	for i, key := range keys {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: []byte(key.ID)})
	}
	var row [7]driver.Value
	return c.rows(c.background, s, c.args, row[:], func(row []driver.Value) error {
		var d decoder
		arm := d.count(row[0])
		if d.err != nil {
			return d.err
		}
		if arm == 0 {
			t.seq = backend.Seq(d.count(row[1]))
			return d.err
		}
		r, err := record(keys[arm-1], row[1:])
		t.records = append(t.records, r)
		return err
	})
}

// get returns the statement for a Get of keys in certain tables:
//
//	SELECT 0, seq, NULL, … FROM store
//	UNION ALL SELECT 1, rev, parent, … FROM secrets WHERE id = ?1
//	UNION ALL SELECT 2, …
func (c *conn) get(shape []byte, keys []backend.Key) (*sqlite3.SQLiteStmt, error) {
	if s, ok := c.statements[string(shape)]; ok {
		return s, nil
	}
	return c.prepared(string(shape), func() string {
		var text strings.Builder
		text.WriteString("SELECT 0, seq, NULL, NULL, NULL, NULL, NULL FROM store")
		for i, key := range keys {
			fmt.Fprintf(&text, " UNION ALL SELECT %d, %s FROM %s WHERE id = ?%d", i+1, recordColumns, key.Table, i+1)
		}
		return text.String()
	})
}

// Scan returns a page. Its bodies are at most 16 MiB together, unless a single
// record is larger.
func (b *Backend) Scan(ctx context.Context, q backend.Query) (backend.Page, error) {
	if err := q.Check(); err != nil {
		return backend.Page{}, err
	}
	text, args, err := scanStatement(q)
	if err != nil {
		return backend.Page{}, err
	}
	var page backend.Page
	size, more := 0, false
	err = b.read(ctx, func(c *conn) error {
		return c.query(ctx, text, 7, func(row []driver.Value) error {
			var d decoder
			r, err := record(backend.Key{Table: q.Table, ID: string(d.bytes(row[0]))}, row[1:])
			if err = cmp.Or(d.err, err); err != nil {
				return err
			}
			size += len(r.Body)
			if len(page.Records) == q.Limit || (len(page.Records) > 0 && size > maxPageBytes) {
				more = true
				return errEnough
			}
			page.Records = append(page.Records, r)
			return nil
		}, args...)
	})
	if err != nil {
		return backend.Page{}, err
	}
	if more {
		page.Next = q.NextAfter(page.Records[len(page.Records)-1])
	}
	return page, nil
}

// Changes returns changes after a sequence number.
func (b *Backend) Changes(ctx context.Context, after backend.Seq, limit int) ([]backend.Change, error) {
	if err := backend.CheckChanges(limit); err != nil {
		return nil, err
	}
	var changes []backend.Change
	err := b.read(ctx, func(c *conn) error {
		return c.snapshot(func() error {
			state, err := c.state()
			if err != nil {
				return err
			}
			if after < state.floor || after > state.seq {
				return fmt.Errorf("%w: after %d of %d to %d", backend.ErrCompacted, after, state.floor, state.seq)
			}
			changes, err = c.changes(after, max(limit, backend.MaxBatchOps)+1)
			return err
		})
	})
	if err != nil {
		return nil, err
	}
	return backend.WholeBatches(changes, limit), nil
}

func (c *conn) changes(after backend.Seq, limit int) (changes []backend.Change, err error) {
	err = c.query(c.background, `SELECT seq, tbl, id, deleted FROM changes WHERE seq > ? ORDER BY seq, n LIMIT ?`, 4,
		func(row []driver.Value) error {
			var d decoder
			changes = append(changes, backend.Change{
				Seq:     backend.Seq(d.count(row[0])),
				Key:     backend.Key{Table: backend.Table(d.count(row[1])), ID: string(d.bytes(row[2]))},
				Deleted: d.integer(row[3]) != 0,
			})
			return d.err
		}, int64(after), int64(limit))
	return changes, err
}
