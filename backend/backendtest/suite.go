// SPDX-License-Identifier: Apache-2.0

// Package backendtest is what every backend driver must pass: the port's
// promises as tests, against a model, under concurrency, and across reopening
// and kill -9.
//
// A driver's own tests call Run, or RunDurable when its records survive the
// process, and RunKilled when they survive its violent end. Passing says that
// the driver keeps the port's promises on a healthy disk or network; it says
// nothing about what a failing one loses, which each driver shows on its own.
package backendtest

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
)

// Opener opens one store, the same each time. The suite closes what it opened
// before it opens again.
type Opener func(t *testing.T) backend.Backend

// Run tests a driver. open returns a new, empty backend each time, which the
// suite closes.
func Run(t *testing.T, open func(t *testing.T) backend.Backend) {
	t.Helper()
	run(t, func(*testing.T) Opener { return open }, false)
}

// RunDurable does what Run does, and also closes and reopens stores. create
// prepares a new, empty store each time.
func RunDurable(t *testing.T, create func(t *testing.T) Opener) {
	t.Helper()
	run(t, create, true)
	for name, test := range map[string]func(*testing.T, Opener){
		"WhatWasCommittedIsThereAfterReopening": testReopen,
		"ABatchIsNotAppliedAgainAfterReopening": testReplayAfterReopen,
	} {
		t.Run(name, func(t *testing.T) { test(t, create(t)) })
	}
}

func run(t *testing.T, create func(t *testing.T) Opener, durable bool) {
	t.Helper()
	for name, test := range map[string]func(*testing.T, backend.Backend){
		"ANewStoreIsEmpty":                     testNew,
		"KeysAreOrderedByTheirBytes":           testKeyOrder,
		"RecordsComeBackAsTheyWere":            testRecords,
		"AGetOfManyKeysIsOneCut":               testLargeGet,
		"WhatIsOutOfBoundsIsRefused":           testBounds,
		"TheBoundsThemselvesWork":              testExtremes,
		"ABatchIsAppliedOnce":                  testReplay,
		"ABatchIsAppliedOnceByManyCallers":     testConcurrentReplay,
		"BatchesOfOneCommitStandOnTheirOwn":    testBatches,
		"OneBadBatchAppliesNone":               testBadBatch,
		"OldChangesAreForgottenAndItIsSaid":    testCompacted,
		"ChangesNeverSplitABatch":              testChanges,
		"ACancelledContextDoesNothing":         testCancelled,
		"AClosedBackendSaysSo":                 testClosed,
		"PagesNeitherSkipNorRepeatUnderWrites": testPaging,
		"TheFeedHasNoGapsWhileWritersRace":     testFeed,
		"TransactionsDoNotSkew":                testSkew,
		"APathIsASecretOrAFolderNeverBoth":     testPathRace,
		"AFolderIsNotRemovedUnderItsSecrets":   testFolderRace,
		"HistoriesAreLinearizable":             testLinearizable,
		"CloseWaitsForCallsUnderWay":           testCloseUnderLoad,
		"OptionalInterfacesKeepTheRecords":     testOptional,
	} {
		t.Run(name, func(t *testing.T) {
			b := create(t)(t)
			t.Cleanup(func() { closeBackend(t, b) })
			test(t, b)
		})
	}
	t.Run("AgreesWithAModel", func(t *testing.T) { testModel(t, create, durable) })
}

func closeBackend(t testing.TB, b backend.Backend) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Errorf("closing: %v", err)
	}
}

// key returns a key of table Secrets.
func key(id string) backend.Key { return backend.Key{Table: backend.Secrets, ID: id} }

// put returns an operation that writes body under id in table Secrets.
func put(id, body string) backend.Op {
	return backend.Op{Record: backend.Record{Key: key(id), Body: []byte(body)}}
}

func remove(id string) backend.Op {
	return backend.Op{Record: backend.Record{Key: key(id)}, Delete: true}
}

// batchID makes a batch ID that is not zero.
func batchID(n int) (id [16]byte) {
	copy(id[:], fmt.Sprintf("batch%011d", n))
	return id
}

// fataler is what testing.T and rapid.T have in common here.
type fataler interface {
	Helper()
	Fatalf(format string, args ...any)
}

func commit(ctx context.Context, t fataler, b backend.Backend, batches ...backend.Batch) []backend.Result {
	t.Helper()
	results, err := b.Commit(ctx, batches)
	if err != nil {
		t.Fatalf("Commit: %v", err)
	}
	if len(results) != len(batches) {
		t.Fatalf("Commit returned %d results for %d batches", len(results), len(batches))
	}
	return results
}

func get(ctx context.Context, t fataler, b backend.Backend, keys ...backend.Key) []backend.Record {
	t.Helper()
	records, _, err := b.Get(ctx, keys)
	if err != nil {
		t.Fatalf("Get: %v", err)
	}
	return records
}

// scan collects all pages of a query.
func scan(ctx context.Context, t fataler, b backend.Backend, q backend.Query) []backend.Record {
	t.Helper()
	var records []backend.Record
	for {
		page, err := b.Scan(ctx, q)
		if err != nil {
			t.Fatalf("Scan: %v", err)
		}
		if len(page.Records) > q.Limit {
			t.Fatalf("Scan returned %d records with limit %d", len(page.Records), q.Limit)
		}
		if page.Next != "" && (len(page.Records) == 0 || page.Next == q.Cursor) {
			t.Fatalf("Scan does not get on: %d records, then again %q", len(page.Records), page.Next)
		}
		records = append(records, page.Records...)
		if page.Next == "" {
			return records
		}
		q.Cursor = page.Next
	}
}

func sameRecord(a, b backend.Record) bool {
	return a.Key == b.Key && a.Rev == b.Rev && a.Hints == b.Hints && bytes.Equal(a.Body, b.Body)
}

func requireRecords(t fataler, got, want []backend.Record) {
	t.Helper()
	if !slices.EqualFunc(got, want, sameRecord) {
		t.Fatalf("got %d records, want %d:\n got %.1000v\nwant %.1000v", len(got), len(want), got, want)
	}
}
