// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/keyhole-agent/keyhole/backend"
)

// machine runs the same random operations on a backend and on the model.
type machine struct {
	outer *testing.T
	open  Opener
	b     backend.Backend
	m     *model
}

func testModel(t *testing.T, create func(t *testing.T) Opener, durable bool) {
	rapid.Check(t, func(rt *rapid.T) {
		m := &machine{outer: t, open: create(t), m: newModel()}
		m.b = m.open(t)
		defer func() { closeBackend(t, m.b) }()
		actions := map[string]func(*rapid.T){
			"commit":  m.commit,
			"get":     m.get,
			"scan":    m.scan,
			"changes": m.changes,
		}
		if durable {
			actions["reopen"] = m.reopen
		}
		rt.Repeat(actions)
		m.scan(rt)
	})
}

// The generators draw from few values, so that operations meet each other.

func someTable(t *rapid.T) backend.Table {
	return rapid.SampledFrom([]backend.Table{backend.Secrets, backend.Versions, backend.Payloads}).Draw(t, "table")
}

func someID(t *rapid.T) string {
	return rapid.SampledFrom([]string{"a", "b", "a\x00", "a\xff", "\x00", "\xff", "ab"}).Draw(t, "id")
}

func someKey(t *rapid.T) backend.Key {
	return backend.Key{Table: someTable(t), ID: someID(t)}
}

func someRecord(t *rapid.T) backend.Record {
	return backend.Record{
		Key: someKey(t),
		Hints: backend.Hints{
			Parent: rapid.SampledFrom([]string{"", "a", "a\x00", "\xff"}).Draw(t, "parent"),
			Empty:  rapid.Int64Range(-1, 2).Draw(t, "empty"),
			Due:    rapid.Int64Range(-1, 2).Draw(t, "due"),
			Term:   rapid.Uint32Range(0, 3).Draw(t, "term"),
		},
		Body: rapid.SliceOfN(rapid.Byte(), 0, 20).Draw(t, "body"),
	}
}

func (m *machine) someCond(t *rapid.T) backend.Cond {
	c := backend.Cond{Key: someKey(t)}
	switch rapid.IntRange(0, 5).Draw(t, "kind of condition") {
	case 0:
		c.NoChildren = true
	case 1:
		c.Rev = backend.Seq(rapid.Uint64Range(0, uint64(m.m.seq)+1).Draw(t, "revision"))
	default:
		c.Rev = m.m.records[c.Key].Rev
	}
	return c
}

func (m *machine) someBatch(t *rapid.T) backend.Batch {
	var batch backend.Batch
	if n := rapid.IntRange(0, 20).Draw(t, "batch ID"); n > 0 {
		batch.ID = batchID(n)
	}
	for range rapid.IntRange(0, 2).Draw(t, "conditions") {
		batch.If = append(batch.If, m.someCond(t))
	}
	seen := map[backend.Key]bool{}
	for range rapid.IntRange(0, 5).Draw(t, "operations") {
		op := backend.Op{Record: someRecord(t), Delete: rapid.IntRange(0, 3).Draw(t, "delete") == 0}
		if !seen[op.Record.Key] {
			batch.Ops = append(batch.Ops, op)
		}
		seen[op.Record.Key] = true
	}
	return batch
}

func (m *machine) commit(t *rapid.T) {
	var batches []backend.Batch
	for range rapid.IntRange(1, 4).Draw(t, "batches") {
		batches = append(batches, m.someBatch(t))
	}
	got := commit(context.Background(), t, m.b, batches...)
	for i, batch := range batches {
		if want := m.m.apply(batch); got[i] != want {
			t.Fatalf("batch %d of %d: %+v, want %+v", i, len(batches), got[i], want)
		}
	}
}

func (m *machine) get(t *rapid.T) {
	keys := rapid.SliceOfN(rapid.Custom(someKey), 0, 40).Draw(t, "keys")
	records, seq, err := m.b.Get(context.Background(), keys)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	if seq != m.m.seq {
		t.Fatalf("Get is at %d, want %d", seq, m.m.seq)
	}
	requireRecords(t, records, m.m.get(keys))
	for id, seq := range m.m.applied {
		applied := get(context.Background(), t, m.b, backend.Key{Table: backend.Applied, ID: string(id[:])})
		if len(applied) != 1 || applied[0].Rev != seq {
			t.Fatalf("batch %q was applied at %d; the store says %v", id, seq, applied)
		}
		break // any one
	}
}

func (m *machine) scan(t *rapid.T) {
	q := backend.Query{
		Table:  someTable(t),
		Order:  rapid.SampledFrom([]backend.Order{backend.ByID, backend.ByParent, backend.ByEmpty, backend.ByDue, backend.ByTerm}).Draw(t, "order"),
		Parent: rapid.SampledFrom([]string{"a", "a\x00", "\xff"}).Draw(t, "parent"),
		Until:  rapid.Int64Range(-2, 3).Draw(t, "until"),
		Term:   rapid.Uint32Range(0, 4).Draw(t, "term"),
		Limit:  rapid.IntRange(1, 8).Draw(t, "limit"),
	}
	requireRecords(t, scan(context.Background(), t, m.b, q), m.m.scan(q))
}

func (m *machine) changes(t *rapid.T) {
	after := backend.Seq(rapid.Uint64Range(0, uint64(m.m.seq)).Draw(t, "after"))
	limit := rapid.IntRange(1, 12).Draw(t, "limit")
	got, err := m.b.Changes(context.Background(), after, limit)
	if err != nil {
		t.Fatalf("Changes: %v", err)
	}
	want := backend.WholeBatches(m.m.changesAfter(after), limit)
	if !slices.Equal(got, want) {
		t.Fatalf("changes after %d, at most %d:\n got %v\nwant %v", after, limit, got, want)
	}
}

func (m *machine) reopen(t *rapid.T) {
	if err := m.b.Close(); err != nil {
		t.Fatalf("closing: %v", err)
	}
	m.b = m.open(m.outer)
}
