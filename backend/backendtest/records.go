// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

func testNew(t *testing.T, b backend.Backend) {
	info, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if info.Port != backend.PortVersion || info.Driver == "" || info.Seq != 0 || info.Epoch == 0 || info.StoreID == [16]byte{} {
		t.Errorf("Info is %+v", info)
	}
	if err := b.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
	for _, table := range backend.Tables {
		if found := scan(t.Context(), t, b, backend.Query{Table: table, Limit: 10}); len(found) != 0 {
			t.Errorf("%s holds %v", table, found)
		}
	}
	if records, seq, err := b.Get(t.Context(), nil); len(records) != 0 || seq != 0 || err != nil {
		t.Errorf("Get of nothing: %v, %d, %v", records, seq, err)
	}
	if results, err := b.Commit(t.Context(), nil); len(results) != 0 || err != nil {
		t.Errorf("Commit of nothing: %v, %v", results, err)
	}
}

// awkwardIDs holds keys that text handling would reorder, fold or cut.
func awkwardIDs() []string {
	ids := []string{
		"\x00", "\x00\x00", "\x00a", "A", "a", "a\x00", "a\x00b", "a\x7f", "a\x80", "a\xff", "a\xff\xff", "ab", "b",
		"%", "'", "\"; DROP TABLE secrets", "ä", "a\u0308", "\xc3\x28", "\xfe", "\xff", "\xff\x00", "\xff\xff",
		strings.Repeat("k", backend.MaxIDBytes-1), strings.Repeat("k", backend.MaxIDBytes),
		strings.Repeat("\xff", backend.MaxIDBytes), strings.Repeat("\x00", backend.MaxIDBytes),
	}
	slices.Sort(ids)
	return ids
}

func testKeyOrder(t *testing.T, b backend.Backend) {
	ids := awkwardIDs()
	var batch backend.Batch
	for i := range ids {
		op := put(ids[len(ids)-1-i], "x")
		op.Record.Hints = backend.Hints{Parent: "p\x00\xff", Empty: 5, Due: -5, Term: 1}
		batch.Ops = append(batch.Ops, op)
	}
	commit(t.Context(), t, b, batch)
	for _, q := range []backend.Query{
		{Order: backend.ByID},
		{Order: backend.ByParent, Parent: "p\x00\xff"},
		{Order: backend.ByEmpty, Until: 5},
		{Order: backend.ByDue, Until: -5},
		{Order: backend.ByTerm, Term: 2},
	} {
		for _, limit := range []int{1, 2, 7, len(ids) - 1, len(ids), 1000} {
			q.Table, q.Limit = backend.Secrets, limit
			var got []string
			for _, r := range scan(t.Context(), t, b, q) {
				got = append(got, r.Key.ID)
			}
			if !slices.Equal(got, ids) {
				t.Fatalf("order %d in pages of %d: %q", q.Order, limit, got)
			}
		}
	}
}

func testRecords(t *testing.T, b backend.Backend) {
	var want []backend.Record
	for i, body := range [][]byte{nil, {}, {0}, []byte("text"), bytes.Repeat([]byte{0xff, 0}, 5000)} {
		for _, hints := range []backend.Hints{
			{},
			{Parent: "\x00", Empty: math.MaxInt64, Due: math.MinInt64, Term: math.MaxUint32},
			{Parent: strings.Repeat("p", backend.MaxIDBytes), Empty: -1, Due: 1, Term: 1},
		} {
			for _, table := range backend.Tables[:len(backend.Tables)-1] {
				want = append(want, backend.Record{
					Key: backend.Key{Table: table, ID: fmt.Sprintf("%d/%d", i, len(want))}, Hints: hints, Body: body,
				})
			}
		}
	}
	var batch backend.Batch
	keys := make([]backend.Key, len(want))
	for i, r := range want {
		r.Rev = 99 // ignored
		batch.Ops = append(batch.Ops, backend.Op{Record: r})
		want[i].Rev, keys[i] = 1, r.Key
	}
	commit(t.Context(), t, b, batch)
	requireRecords(t, get(t.Context(), t, b, keys...), want)
	for _, r := range want {
		requireRecords(t, get(t.Context(), t, b, r.Key), []backend.Record{r})
	}
	// The same ID in another table is another record.
	if found := get(t.Context(), t, b, backend.Key{Table: backend.Policies, ID: want[0].Key.ID}); len(found) != 0 {
		t.Errorf("found %v in a table that it is not in", found)
	}
}

func testLargeGet(t *testing.T, b backend.Backend) {
	const count = 1000
	batch := backend.Batch{}
	for i := range count {
		batch.Ops = append(batch.Ops, put(fmt.Sprintf("%04d", i), "x"))
	}
	commit(t.Context(), t, b, batch)
	// Each round rewrites all in one batch, so a cut shows one revision only.
	stop := writeUntilStopped(t, b, batch)
	var keys []backend.Key
	for i := range count {
		keys = append(keys, key(fmt.Sprintf("%04d", count-1-i)), key(fmt.Sprintf("absent%d", i)))
	}
	for range 20 {
		records, seq, err := b.Get(t.Context(), keys)
		if err != nil {
			t.Fatal(err)
		}
		if len(records) != count {
			t.Fatalf("%d of %d records", len(records), count)
		}
		for i, r := range records {
			if r.Rev != seq || r.Key.ID != fmt.Sprintf("%04d", count-1-i) {
				t.Fatalf("record %d of the cut at %d is %v", i, seq, r)
			}
		}
	}
	stop()
	// A key asked for twice is answered twice.
	if twice := get(t.Context(), t, b, key("0001"), key("0002"), key("0001")); len(twice) != 3 || twice[0].Key != twice[2].Key {
		t.Errorf("a key asked for twice: %v", twice)
	}
}

func testBounds(t *testing.T, b backend.Backend) {
	ops := func(n int) (ops []backend.Op) {
		for i := range n {
			ops = append(ops, put(fmt.Sprint(i), ""))
		}
		return ops
	}
	long := strings.Repeat("x", backend.MaxIDBytes+1)
	for name, c := range map[string]struct {
		batch backend.Batch
		want  error
	}{
		"too many operations": {backend.Batch{Ops: ops(backend.MaxBatchOps + 1)}, secret.ErrTooLarge},
		"too many in all":     {backend.Batch{If: []backend.Cond{{Key: key("c")}}, Ops: ops(backend.MaxBatchOps)}, secret.ErrTooLarge},
		"too large a body":    {backend.Batch{Ops: []backend.Op{put("a", strings.Repeat("x", backend.MaxBodyBytes+1))}}, secret.ErrTooLarge},
		"a key twice":         {backend.Batch{Ops: []backend.Op{put("a", "1"), remove("a")}}, secret.ErrInvalid},
		"no ID":               {backend.Batch{Ops: []backend.Op{put("", "")}}, secret.ErrInvalid},
		"too long an ID":      {backend.Batch{Ops: []backend.Op{put(long, "")}}, secret.ErrInvalid},
		"too long a parent": {backend.Batch{Ops: []backend.Op{{Record: backend.Record{
			Key: key("a"), Hints: backend.Hints{Parent: long}}}}}, secret.ErrInvalid},
		"no ID in a condition": {backend.Batch{If: []backend.Cond{{Key: key("")}}}, secret.ErrInvalid},
		"no table":             {backend.Batch{Ops: []backend.Op{{Record: backend.Record{Key: backend.Key{ID: "a"}}}}}, secret.ErrInvalid},
		"an unknown table":     {backend.Batch{If: []backend.Cond{{Key: backend.Key{Table: 200, ID: "a"}}}}, secret.ErrInvalid},
		"the driver's table": {backend.Batch{Ops: []backend.Op{{Record: backend.Record{
			Key: backend.Key{Table: backend.Applied, ID: "a"}}}}}, secret.ErrInvalid},
	} {
		if _, err := b.Commit(t.Context(), []backend.Batch{c.batch}); !errors.Is(err, c.want) {
			t.Errorf("%s: %v, want %v", name, err, c.want)
		}
	}
	for name, q := range map[string]backend.Query{
		"no limit":          {Table: backend.Secrets},
		"a negative limit":  {Table: backend.Secrets, Limit: -1},
		"too high a limit":  {Table: backend.Secrets, Limit: backend.MaxScanLimit + 1},
		"no table":          {Limit: 1},
		"an unknown table":  {Table: 200, Limit: 1},
		"an unknown order":  {Table: backend.Secrets, Order: 200, Limit: 1},
		"no parent":         {Table: backend.Secrets, Order: backend.ByParent, Limit: 1},
		"a cut cursor":      {Table: backend.Secrets, Order: backend.ByDue, Limit: 1, Cursor: "x"},
		"too long a cursor": {Table: backend.Secrets, Limit: 1, Cursor: long},
	} {
		if _, err := b.Scan(t.Context(), q); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("scan with %s: %v", name, err)
		}
	}
	for _, limit := range []int{-1, 0, backend.MaxScanLimit + 1} {
		if _, err := b.Changes(t.Context(), 0, limit); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("changes with limit %d: %v", limit, err)
		}
	}
	if _, _, err := b.Get(t.Context(), []backend.Key{{Table: backend.Secrets}}); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("get of no ID: %v", err)
	}
	if info, err := b.Info(t.Context()); err != nil || info.Seq != 0 {
		t.Errorf("after refusals: %+v, %v", info, err)
	}
}

func testExtremes(t *testing.T, b backend.Backend) {
	body := strings.Repeat("\x00\xff", backend.MaxBodyBytes/2)
	largest := backend.Batch{ID: batchID(1), If: []backend.Cond{{Key: key("0")}}}
	for i := range backend.MaxBatchOps - 1 {
		largest.Ops = append(largest.Ops, put(fmt.Sprint(i), ""))
	}
	commit(t.Context(), t, b, largest, backend.Batch{Ops: []backend.Op{put("large", body)}})
	got := get(t.Context(), t, b, key("large"))
	if len(got) != 1 || string(got[0].Body) != body {
		t.Error("the largest body did not come back")
	}
	page, err := b.Scan(t.Context(), backend.Query{Table: backend.Secrets, Limit: backend.MaxScanLimit})
	if err != nil || len(page.Records) != backend.MaxBatchOps || page.Next != "" {
		t.Errorf("the largest page: %d records, next %q, %v", len(page.Records), page.Next, err)
	}
	changes, err := b.Changes(t.Context(), 0, backend.MaxScanLimit)
	if err != nil || len(changes) != backend.MaxBatchOps {
		t.Errorf("%d changes, %v", len(changes), err)
	}
}
