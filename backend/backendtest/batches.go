// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

func requireResults(t *testing.T, got []backend.Result, want ...backend.Result) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("results are %+v, want %+v", got, want)
	}
}

func testReplay(t *testing.T, b backend.Backend) {
	ctx := t.Context()
	once := backend.Batch{ID: batchID(1), If: []backend.Cond{{Key: key("a")}}, Ops: []backend.Op{put("a", "1")}}
	// In one Commit the second is a repetition already.
	requireResults(t, commit(ctx, t, b, once, once), backend.Result{Seq: 1}, backend.Result{Seq: 1, Replayed: true})
	commit(ctx, t, b, backend.Batch{Ops: []backend.Op{put("a", "2")}})
	// Neither its conditions nor its operations count any more, whatever they are.
	once.Ops = []backend.Op{put("a", "3"), put("b", "3")}
	requireResults(t, commit(ctx, t, b, once), backend.Result{Seq: 1, Replayed: true})
	requireRecords(t, get(ctx, t, b, key("a"), key("b")), []backend.Record{{Key: key("a"), Rev: 2, Body: []byte("2")}})

	// A conflict is not remembered.
	late := backend.Batch{ID: batchID(2), If: []backend.Cond{{Key: key("c"), Rev: 3}}, Ops: []backend.Op{put("d", "")}}
	requireResults(t, commit(ctx, t, b, late), backend.Result{Conflict: true})
	commit(ctx, t, b, backend.Batch{Ops: []backend.Op{put("c", "")}})
	requireResults(t, commit(ctx, t, b, late), backend.Result{Seq: 4})

	// Without an ID a batch is applied each time.
	every := backend.Batch{Ops: []backend.Op{put("e", "")}}
	requireResults(t, commit(ctx, t, b, every, every), backend.Result{Seq: 5}, backend.Result{Seq: 6})

	id := batchID(1)
	applied := get(ctx, t, b, backend.Key{Table: backend.Applied, ID: string(id[:])})
	if len(applied) != 1 || applied[0].Rev != 1 {
		t.Errorf("table applied says %v of the first batch", applied)
	}
}

func testConcurrentReplay(t *testing.T, b backend.Backend) {
	var wg sync.WaitGroup
	results := make(chan backend.Result, 100)
	for caller := range 8 {
		wg.Go(func() {
			for n := range 10 {
				batch := backend.Batch{ID: batchID(n), Ops: []backend.Op{put(fmt.Sprintf("%d-%d", n, caller), "")}}
				got, err := b.Commit(t.Context(), []backend.Batch{batch})
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				results <- got[0]
			}
		})
	}
	wg.Wait()
	close(results)
	applied := map[backend.Seq]int{}
	for r := range results {
		if !r.Replayed {
			applied[r.Seq]++
		}
	}
	records := scan(t.Context(), t, b, backend.Query{Table: backend.Secrets, Limit: 100})
	if len(applied) != 10 || len(records) != 10 {
		t.Errorf("10 batches of 8 callers: %d were applied, %d records", len(applied), len(records))
	}
}

func testBatches(t *testing.T, b backend.Backend) {
	ctx := t.Context()
	child := put("child", "")
	child.Record.Hints.Parent = "a"
	requireResults(t, commit(ctx, t, b,
		backend.Batch{If: []backend.Cond{{Key: key("a")}}, Ops: []backend.Op{put("a", "1")}},
		backend.Batch{If: []backend.Cond{{Key: key("a")}}, Ops: []backend.Op{put("a", "2"), put("x", "")}}, // sees the one before
		backend.Batch{If: []backend.Cond{{Key: key("a"), Rev: 1}, {Key: key("a"), NoChildren: true}}, Ops: []backend.Op{child}},
		backend.Batch{If: []backend.Cond{{Key: key("a"), NoChildren: true}}, Ops: []backend.Op{remove("a")}},
		backend.Batch{If: []backend.Cond{{Key: key("a"), Rev: 2}}, Ops: []backend.Op{remove("a")}},
		backend.Batch{}, // applied, though it does nothing
		backend.Batch{If: []backend.Cond{{Key: key("child"), NoChildren: true}, {Key: key("a"), Rev: 1}}, Ops: []backend.Op{remove("child"), put("a", "3")}},
		backend.Batch{If: []backend.Cond{{Key: key("a"), NoChildren: true}}, Ops: []backend.Op{remove("a"), remove("absent")}},
	),
		backend.Result{Seq: 1}, backend.Result{Conflict: true}, backend.Result{Seq: 2}, backend.Result{Conflict: true},
		backend.Result{Conflict: true}, backend.Result{Seq: 3}, backend.Result{Seq: 4}, backend.Result{Seq: 5})
	requireRecords(t, get(ctx, t, b, key("a"), key("x"), key("child")), nil)
	// A parent is one within its table.
	other := backend.Op{Record: backend.Record{Key: backend.Key{Table: backend.Versions, ID: "v"}, Hints: backend.Hints{Parent: "p"}}}
	requireResults(t, commit(ctx, t, b,
		backend.Batch{Ops: []backend.Op{other}},
		backend.Batch{If: []backend.Cond{{Key: key("p"), NoChildren: true}}},
		backend.Batch{If: []backend.Cond{{Key: backend.Key{Table: backend.Versions, ID: "p"}, NoChildren: true}}},
	), backend.Result{Seq: 6}, backend.Result{Seq: 7}, backend.Result{Conflict: true})
}

func testBadBatch(t *testing.T, b backend.Backend) {
	good := backend.Batch{ID: batchID(1), Ops: []backend.Op{put("a", "")}}
	bad := backend.Batch{Ops: []backend.Op{put("", "")}}
	if _, err := b.Commit(t.Context(), []backend.Batch{good, bad}); !errors.Is(err, secret.ErrInvalid) {
		t.Fatalf("Commit: %v", err)
	}
	requireRecords(t, get(t.Context(), t, b, key("a")), nil)
	requireResults(t, commit(t.Context(), t, b, good), backend.Result{Seq: 1})
}

func testChanges(t *testing.T, b backend.Backend) {
	ctx := t.Context()
	for i := range 4 {
		var batch backend.Batch
		for j := range 5 {
			batch.Ops = append(batch.Ops, put(fmt.Sprintf("%d%d", i, j), ""))
		}
		commit(ctx, t, b, batch)
	}
	commit(ctx, t, b, backend.Batch{Ops: []backend.Op{remove("00"), remove("absent"), put("01", "")}})
	for limit, want := range map[int]int{1: 5, 4: 5, 5: 5, 9: 5, 10: 10, 21: 20, 22: 22, 100: 22} {
		changes, err := b.Changes(ctx, 0, limit)
		if err != nil || len(changes) != want {
			t.Errorf("limit %d: %d changes, want %d; %v", limit, len(changes), want, err)
		}
	}
	last, err := b.Changes(ctx, 4, 10)
	want := []backend.Change{{Seq: 5, Key: key("00"), Deleted: true}, {Seq: 5, Key: key("01")}}
	if err != nil || !slices.Equal(last, want) {
		t.Errorf("the last changes are %v, %v", last, err)
	}
	if none, err := b.Changes(ctx, 5, 10); err != nil || len(none) != 0 {
		t.Errorf("after all: %v, %v", none, err)
	}
	if _, err := b.Changes(ctx, 6, 10); !errors.Is(err, backend.ErrCompacted) {
		t.Errorf("after a batch that does not exist: %v", err)
	}
}

func testCompacted(t *testing.T, b backend.Backend) {
	if testing.Short() {
		t.Skip("writes 300,000 changes")
	}
	var batch backend.Batch
	for i := range backend.MaxBatchOps {
		batch.Ops = append(batch.Ops, put(fmt.Sprint(i), ""))
	}
	const batches = 75
	const enough = backend.KeptChanges/backend.MaxBatchOps + 1 // batches that must be kept at any time
	for n := range backend.Seq(batches) {
		commit(t.Context(), t, b, batch)
		after := max(n+1, enough) - enough
		changes, err := b.Changes(t.Context(), after, 1)
		if err != nil || len(changes) != backend.MaxBatchOps || changes[0].Seq != after+1 {
			t.Fatalf("at %d, of the changes after %d: %d, %v", n+1, after, len(changes), err)
		}
	}
	if _, err := b.Changes(t.Context(), 0, 1); !errors.Is(err, backend.ErrCompacted) {
		t.Errorf("after %d changes the first ones: %v", batches*backend.MaxBatchOps, err)
	}
}

func testCancelled(t *testing.T, b backend.Backend) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, infoErr := b.Info(ctx)
	_, _, getErr := b.Get(ctx, []backend.Key{key("a")})
	_, scanErr := b.Scan(ctx, backend.Query{Table: backend.Secrets, Limit: 1})
	_, commitErr := b.Commit(ctx, []backend.Batch{{Ops: []backend.Op{put("a", "")}}})
	_, changesErr := b.Changes(ctx, 0, 1)
	for name, err := range map[string]error{
		"Info": infoErr, "Get": getErr, "Scan": scanErr, "Commit": commitErr, "Changes": changesErr, "Health": b.Health(ctx),
	} {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %v", name, err)
		}
	}
	requireRecords(t, get(t.Context(), t, b, key("a")), nil)
}

func testClosed(t *testing.T, b backend.Backend) {
	ctx := t.Context()
	for range 2 { // closing twice is fine
		closeBackend(t, b)
	}
	_, infoErr := b.Info(ctx)
	_, _, getErr := b.Get(ctx, []backend.Key{key("a")})
	_, scanErr := b.Scan(ctx, backend.Query{Table: backend.Secrets, Limit: 1})
	_, commitErr := b.Commit(ctx, []backend.Batch{{Ops: []backend.Op{put("a", "")}}})
	_, changesErr := b.Changes(ctx, 0, 1)
	for name, err := range map[string]error{
		"Info": infoErr, "Get": getErr, "Scan": scanErr, "Commit": commitErr, "Changes": changesErr, "Health": b.Health(ctx),
	} {
		if !errors.Is(err, backend.ErrClosed) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func testReopen(t *testing.T, open Opener) {
	b := open(t)
	before, err := b.Info(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	op := put("a\x00", "body")
	op.Record.Hints = backend.Hints{Parent: "p", Empty: 1, Due: 2, Term: 3}
	commit(t.Context(), t, b, backend.Batch{Ops: []backend.Op{op}}, backend.Batch{Ops: []backend.Op{put("b", "")}})
	closeBackend(t, b)

	b = open(t)
	defer closeBackend(t, b)
	after, err := b.Info(t.Context())
	if err != nil || after.StoreID != before.StoreID || after.Seq != 2 || !after.Durable || after.Epoch < before.Epoch {
		t.Errorf("Info was %+v and is %+v, %v", before, after, err)
	}
	op.Record.Rev = 1
	requireRecords(t, get(t.Context(), t, b, op.Record.Key), []backend.Record{op.Record})
	requireResults(t, commit(t.Context(), t, b, backend.Batch{Ops: []backend.Op{remove("b")}}), backend.Result{Seq: 3})
	changes, err := b.Changes(t.Context(), 0, 10)
	if err != nil || len(changes) != 3 {
		t.Errorf("changes: %v, %v", changes, err)
	}
}

func testReplayAfterReopen(t *testing.T, open Opener) {
	b := open(t)
	batch := backend.Batch{ID: batchID(7), Ops: []backend.Op{put("a", "1")}}
	commit(t.Context(), t, b, batch, backend.Batch{Ops: []backend.Op{put("a", "2")}})
	closeBackend(t, b)
	b = open(t)
	defer closeBackend(t, b)
	requireResults(t, commit(t.Context(), t, b, batch), backend.Result{Seq: 1, Replayed: true})
	requireRecords(t, get(t.Context(), t, b, key("a")), []backend.Record{{Key: key("a"), Rev: 2, Body: []byte("2")}})
}
