// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"io"
	"strings"
	"testing"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/keyhole-agent/keyhole/backend"
)

func TestEachOrderReadsAnIndex(t *testing.T) {
	b := openStore(t, newPath(t))
	for order, wants := range map[backend.Order]string{
		backend.ByID:     "USING PRIMARY KEY (id>?)",
		backend.ByParent: "USING INDEX secrets_parent (parent=? AND id>?)",
		backend.ByEmpty:  "USING INDEX secrets_empty ((empty,id)>(?,?)",
		backend.ByDue:    "USING INDEX secrets_due ((due,id)>(?,?)",
		backend.ByTerm:   "USING PRIMARY KEY (id>?)",
	} {
		plan := planOf(t, b, backend.Query{Table: backend.Secrets, Order: order, Parent: "p", Limit: 1})
		if !strings.Contains(plan, wants) || strings.Contains(plan, "TEMP B-TREE") {
			t.Errorf("order %d: %s", order, plan)
		}
	}
}

// planOf returns what SQLite says about how it would run a scan.
func planOf(t *testing.T, b *Backend, q backend.Query) string {
	t.Helper()
	text, args, err := scanStatement(q)
	if err != nil {
		t.Fatal(err)
	}
	var plan []string
	err = b.read(t.Context(), func(c *conn) error {
		return c.query(t.Context(), "EXPLAIN QUERY PLAN "+text, 4, func(row []driver.Value) error {
			plan = append(plan, fmt.Sprint(row[3]))
			return nil
		}, args...)
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.Join(plan, "; ")
}

const benchmarked = 10_000 // secrets in the store

// benchmarkKeys are the records of the nth secret, as a read asks for them.
func benchmarkKeys(n int) []backend.Key {
	id := fmt.Sprintf("%032d", n%benchmarked)
	return []backend.Key{
		{Table: backend.Secrets, ID: id}, {Table: backend.Versions, ID: id}, {Table: backend.Payloads, ID: id},
	}
}

func benchmarkBatch(n int) backend.Batch {
	var batch backend.Batch
	for i, key := range benchmarkKeys(n) {
		size := []int{250, 150, 1100}[i] // a payload of 1 KiB, sealed
		batch.Ops = append(batch.Ops, backend.Op{Record: backend.Record{Key: key, Body: make([]byte, size)}})
	}
	return batch
}

func benchmarkStore(b *testing.B) *Backend {
	b.Helper()
	store := openStore(b, newPath(b))
	for n := 0; n < benchmarked; n += 500 {
		var batches []backend.Batch
		for i := range 500 {
			batches = append(batches, benchmarkBatch(n+i))
		}
		if _, err := store.Commit(b.Context(), batches); err != nil {
			b.Fatal(err)
		}
	}
	return store
}

// BenchmarkGet compares a Get of three records with its floor: the same rows
// by their primary keys, three prepared statements on one connection of the bare
// driver, with nothing made of the columns.
func BenchmarkGet(b *testing.B) {
	store := benchmarkStore(b)
	b.Run("Get", func(b *testing.B) {
		for n := 0; b.Loop(); n++ {
			records, _, err := store.Get(b.Context(), benchmarkKeys(n))
			if err != nil || len(records) != 3 {
				b.Fatal(len(records), err)
			}
		}
	})
	b.Run("Parallel", func(b *testing.B) {
		b.RunParallel(func(pb *testing.PB) {
			for n := 0; pb.Next(); n++ {
				if _, _, err := store.Get(b.Context(), benchmarkKeys(n)); err != nil {
					b.Error(err)
				}
			}
		})
	})
	b.Run("Floor", func(b *testing.B) {
		db, err := (&sqlite3.SQLiteDriver{}).Open("file:" + store.path + "?mode=ro&_mutex=no")
		if err != nil {
			b.Fatal(err)
		}
		defer closeFloor(b, db)
		var statements []driver.StmtQueryContext
		for _, table := range []string{"secrets", "versions", "payloads"} {
			s, err := db.Prepare("SELECT body FROM " + table + " WHERE id = ?")
			if err != nil {
				b.Fatal(err)
			}
			defer closeFloor(b, s)
			statements = append(statements, s.(driver.StmtQueryContext))
		}
		row := make([]driver.Value, 1)
		for n := 0; b.Loop(); n++ {
			for i, key := range benchmarkKeys(n) {
				rows, err := statements[i].QueryContext(context.Background(), []driver.NamedValue{{Ordinal: 1, Value: []byte(key.ID)}})
				if err != nil {
					b.Fatal(err)
				}
				if err := rows.Next(row); err != nil {
					b.Fatal(err)
				}
				closeFloor(b, rows)
			}
		}
	})
}

func closeFloor(b *testing.B, c io.Closer) {
	if err := c.Close(); err != nil {
		b.Error(err)
	}
}

// BenchmarkCommit compares a Commit of so many new secrets with its floor: the
// same rows inserted into the same tables in one transaction of the bare driver,
// without conditions, batch IDs, sequence numbers or changes. Both sync once.
func BenchmarkCommit(b *testing.B) {
	for _, group := range []int{1, 32} {
		b.Run(fmt.Sprintf("Commit-%d", group), func(b *testing.B) {
			store := openStore(b, newPath(b))
			for n := 0; b.Loop(); {
				var batches []backend.Batch
				for range group {
					batch := newSecret(n)
					batch.ID = [16]byte{1, byte(n), byte(n >> 8), byte(n >> 16)}
					batches = append(batches, batch)
					n++
				}
				if _, err := store.Commit(b.Context(), batches); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("Floor-%d", group), func(b *testing.B) {
			store := openStore(b, newPath(b))
			for n := 0; b.Loop(); {
				err := store.write(b.Context(), func(c *conn) error {
					return c.transaction(func() error {
						for range group {
							for _, op := range newSecret(n).Ops {
								_, err := c.exec("INSERT INTO "+op.Record.Key.Table.String()+"(id, rev, term, body) VALUES(?, 1, 0, ?)",
									[]byte(op.Record.Key.ID), op.Record.Body)
								if err != nil {
									return err
								}
							}
							n++
						}
						return nil
					})
				})
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// newSecret is the batch that makes a secret, with conditions as a write has.
func newSecret(n int) backend.Batch {
	id := fmt.Sprintf("%032x", uint64(n+1)*0x9E3779B97F4A7C15) // scattered, as HMACs are
	batch := benchmarkBatch(0)
	for i := range batch.Ops {
		batch.Ops[i].Record.Key.ID = id
	}
	batch.If = []backend.Cond{{Key: batch.Ops[0].Record.Key}}
	return batch
}
