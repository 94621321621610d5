// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
)

// writeUntilStopped commits batch over and over. stop waits for the writer.
func writeUntilStopped(t *testing.T, b backend.Backend, batches ...backend.Batch) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			if _, err := b.Commit(ctx, []backend.Batch{batches[i%len(batches)]}); err != nil && ctx.Err() == nil {
				t.Errorf("Commit: %v", err)
				return
			}
		}
	})
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return stop
}

func testPaging(t *testing.T, b backend.Backend) {
	const stable = 200
	var first backend.Batch
	for i := range stable {
		op := put(fmt.Sprintf("%04d", i), "stable")
		op.Record.Hints = backend.Hints{Parent: "p", Empty: int64(1 + i%3), Due: int64(1 + i%5), Term: 1}
		first.Ops = append(first.Ops, op)
	}
	commit(t.Context(), t, b, first)
	// Between and among them, others come, move and go.
	var writes []backend.Batch
	for round := range 3 {
		var batch backend.Batch
		for i := range 100 {
			op := put(fmt.Sprintf("%04d-moving", 2*i), "moving")
			op.Record.Hints = backend.Hints{Parent: "p", Empty: int64(1 + (i+round)%4), Due: int64(1 + (i+2*round)%6), Term: 1}
			op.Delete = round == 2 && i%2 == 0
			batch.Ops = append(batch.Ops, op)
		}
		writes = append(writes, batch)
	}
	writeUntilStopped(t, b, writes...)
	for _, q := range []backend.Query{
		{Order: backend.ByID},
		{Order: backend.ByParent, Parent: "p"},
		{Order: backend.ByEmpty, Until: 10},
		{Order: backend.ByDue, Until: 10},
		{Order: backend.ByTerm, Term: 2},
	} {
		for _, limit := range []int{1, 7, 50} {
			q.Table, q.Limit = backend.Secrets, limit
			seen := map[string]int{}
			for _, r := range scan(t.Context(), t, b, q) {
				if string(r.Body) == "stable" {
					seen[r.Key.ID]++
				}
			}
			for _, op := range first.Ops {
				if n := seen[op.Record.Key.ID]; n != 1 {
					t.Fatalf("order %d in pages of %d: %s was seen %d times", q.Order, limit, op.Record.Key.ID, n)
				}
			}
		}
	}
}

func testFeed(t *testing.T, b backend.Backend) {
	const writers, each = 4, 50
	var mu sync.Mutex
	sizes := map[backend.Seq]int{} // guarded by mu: the operations of each batch
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range each {
				ops := []backend.Op{put(fmt.Sprintf("%d-%d", w, i), "")}
				for extra := range i % 4 {
					ops = append(ops, put(fmt.Sprintf("%d-%d-%d", w, i, extra), ""))
				}
				results, err := b.Commit(t.Context(), []backend.Batch{{Ops: ops}})
				if err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				mu.Lock()
				sizes[results[0].Seq] = len(ops)
				mu.Unlock()
			}
		})
	}
	defer wg.Wait()
	var after backend.Seq
	inBatch := map[backend.Seq]int{}
	for after < writers*each && !t.Failed() {
		changes, err := b.Changes(t.Context(), after, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range changes {
			if c.Seq != after && c.Seq != after+1 {
				t.Fatalf("after %d comes %d", after, c.Seq)
			}
			if after = c.Seq; inBatch[c.Seq] == 0 {
				records := get(t.Context(), t, b, c.Key)
				if len(records) != 1 || records[0].Rev != c.Seq {
					t.Fatalf("the feed says %v, the store %v", c, records)
				}
			}
			inBatch[c.Seq]++
		}
	}
	wg.Wait()
	for seq, n := range inBatch {
		if want := sizes[seq]; n != want {
			t.Errorf("of the %d changes of batch %d the feed had %d", want, seq, n)
		}
	}
}

// testSkew lets two transactions each read what the other writes: of two who
// are on call, only one may leave.
func testSkew(t *testing.T, b backend.Backend) {
	ctx := t.Context()
	store := backend.Direct{Backend: b}
	for round := range 50 {
		names := []string{fmt.Sprintf("%d-x", round), fmt.Sprintf("%d-y", round)}
		commit(ctx, t, b, backend.Batch{Ops: []backend.Op{put(names[0], "on"), put(names[1], "on")}})
		var wg sync.WaitGroup
		for me := range names {
			wg.Go(func() {
				_, err := backend.Update(ctx, store, [16]byte{}, func(tx *backend.Tx) error {
					records, err := tx.Get(key(names[0]), key(names[1]))
					if err == nil && string(records[1-me].Body) == "on" {
						tx.Put(put(names[me], "off").Record)
					}
					return err
				})
				if err != nil {
					t.Errorf("Update: %v", err)
				}
			})
		}
		wg.Wait()
		on := 0
		for _, r := range get(ctx, t, b, key(names[0]), key(names[1])) {
			if string(r.Body) == "on" {
				on++
			}
		}
		if on != 1 {
			t.Fatalf("round %d: %d are on call", round, on)
		}
	}
}

var errTaken = errors.New("the path is taken")

// putPath creates a secret at folder/name, or at folder itself when name is "",
// as the packages above do: a folder is a record, which its secrets require to
// be one, and whose revision they leave alone.
func putPath(ctx context.Context, b backend.Backend, folder, name string) error {
	_, err := backend.Update(ctx, backend.Direct{Backend: b}, [16]byte{}, func(tx *backend.Tx) error {
		path := folder
		if name != "" {
			path = folder + "/" + name
		}
		records, err := tx.Get(key(folder), key(path))
		if err != nil {
			return err
		}
		if records[1].Rev != 0 || (name != "" && records[0].Rev != 0 && string(records[0].Body) != "folder") {
			return errTaken
		}
		if name != "" && records[0].Rev == 0 {
			tx.Put(put(folder, "folder").Record)
		}
		made := put(path, "secret").Record
		if name != "" {
			made.Hints.Parent = folder
		}
		tx.Put(made)
		return nil
	})
	return err
}

func testPathRace(t *testing.T, b backend.Backend) {
	for round := range 50 {
		folder := fmt.Sprintf("a%d", round)
		var wg sync.WaitGroup
		var asSecret, asFolder error
		wg.Go(func() { asSecret = putPath(t.Context(), b, folder, "") })
		wg.Go(func() { asFolder = putPath(t.Context(), b, folder, "b") })
		wg.Wait()
		for _, err := range []error{asSecret, asFolder} {
			if err != nil && !errors.Is(err, errTaken) {
				t.Fatal(err)
			}
		}
		if (asSecret == nil) == (asFolder == nil) {
			t.Fatalf("round %d: put a: %v; put a/b: %v", round, asSecret, asFolder)
		}
		records := get(t.Context(), t, b, key(folder), key(folder+"/b"))
		if asFolder == nil && (len(records) != 2 || string(records[0].Body) != "folder") ||
			asSecret == nil && (len(records) != 1 || string(records[0].Body) != "secret") {
			t.Fatalf("round %d: put a: %v; put a/b: %v; left are %v", round, asSecret, asFolder, records)
		}
	}
}

// testFolderRace removes an empty folder while somebody puts a secret into it.
func testFolderRace(t *testing.T, b backend.Backend) {
	for round := range 50 {
		folder := fmt.Sprintf("a%d", round)
		commit(t.Context(), t, b, backend.Batch{Ops: []backend.Op{put(folder, "folder")}})
		var wg sync.WaitGroup
		var putting, removing error
		wg.Go(func() { putting = putPath(t.Context(), b, folder, "b") })
		wg.Go(func() {
			_, removing = backend.Direct{Backend: b}.Apply(t.Context(), backend.Batch{
				If:  []backend.Cond{{Key: key(folder), NoChildren: true}},
				Ops: []backend.Op{remove(folder)},
			})
		})
		wg.Wait()
		if err := errors.Join(putting, removing); err != nil {
			t.Fatal(err)
		}
		if records := get(t.Context(), t, b, key(folder), key(folder+"/b")); len(records) != 2 {
			t.Fatalf("round %d: left are %v", round, records)
		}
	}
}

func testCloseUnderLoad(t *testing.T, b backend.Backend) {
	var wg sync.WaitGroup
	started := make(chan struct{}, 8)
	for i := range cap(started) {
		wg.Go(func() {
			for n := 0; ; n++ {
				_, err := b.Commit(t.Context(), []backend.Batch{{Ops: []backend.Op{put(fmt.Sprintf("%d-%d", i, n), "")}}})
				if err == nil {
					_, _, err = b.Get(t.Context(), []backend.Key{key(fmt.Sprintf("%d-%d", i, n))})
				}
				if n == 0 {
					started <- struct{}{}
				}
				if err != nil {
					if !errors.Is(err, backend.ErrClosed) {
						t.Errorf("while closing: %v", err)
					}
					return
				}
			}
		})
	}
	for range cap(started) {
		<-started
	}
	closeBackend(t, b)
	wg.Wait()
}

func testOptional(t *testing.T, b backend.Backend) {
	ctx := t.Context()
	var batch backend.Batch
	for i := range 500 {
		batch.Ops = append(batch.Ops, put(fmt.Sprintf("%04d", i), "a body that takes some room in the files of a store"))
	}
	commit(ctx, t, b, batch)
	for i := range 250 {
		batch.Ops[i].Delete = true
	}
	commit(ctx, t, b, batch)
	if c, ok := b.(backend.Compacter); ok {
		if err := c.Compact(ctx); err != nil {
			t.Errorf("Compact: %v", err)
		}
	}
	if c, ok := b.(backend.Checker); ok {
		if err := c.Check(ctx); err != nil {
			t.Errorf("Check: %v", err)
		}
	}
	if left := scan(ctx, t, b, backend.Query{Table: backend.Secrets, Limit: 1000}); len(left) != 250 {
		t.Errorf("%d records are left of 250", len(left))
	}
}
