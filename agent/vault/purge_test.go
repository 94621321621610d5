// SPDX-License-Identifier: Apache-2.0

package vault_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/agent/vault"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

func (f *fixture) empty(t testing.TB, p string) {
	t.Helper()
	f.put(t, p, "password", "x")
	_, err := f.Delete(t.Context(), as(root), path(p), secret.Selection{All: true})
	check(t, err)
}

// purge returns the paths that a purge reported, in order, and how many it
// found.
func (f *fixture) purge(t testing.TB, which secret.Purge) (paths []string, found int) {
	t.Helper()
	check(t, f.Purge(t.Context(), as(root), which, func(step secret.PurgeProgress) error {
		found = step.Found
		for _, p := range step.Paths {
			paths = append(paths, p.String())
		}
		return nil
	}))
	slices.Sort(paths)
	return paths, found
}

// stored counts the records of a table.
func (f *fixture) stored(t testing.TB, table backend.Table) int {
	t.Helper()
	page, err := f.backend.Scan(t.Context(), backend.Query{Table: table, Limit: backend.MaxScanLimit})
	check(t, err)
	return len(page.Records)
}

func TestAPurgeRemovesWhatItsDryRunListedAndNothingElse(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "old/live", "password", "stays")
		for _, p := range []string{"old/a", "old/deep/b", "new"} {
			f.empty(t, p)
		}
		want := []string{"new", "old/a", "old/deep/b"}
		listed, found := f.purge(t, secret.Purge{DryRun: true})
		if !slices.Equal(listed, want) || found != 3 {
			t.Fatalf("the dry run listed %v of %d", listed, found)
		}
		if again, _ := f.purge(t, secret.Purge{DryRun: true}); !slices.Equal(again, want) {
			t.Fatalf("the dry run removed something: %v are left", again)
		}
		purged, found := f.purge(t, secret.Purge{})
		if !slices.Equal(purged, want) || found != 3 {
			t.Fatalf("the purge removed %v of %d", purged, found)
		}
		if left, _ := f.purge(t, secret.Purge{DryRun: true}); len(left) > 0 {
			t.Fatalf("%v are left", left)
		}
		// One secret and its folder remain, with one version.
		for table, want := range map[backend.Table]int{backend.Secrets: 2, backend.Versions: 1, backend.Payloads: 1} {
			if got := f.stored(t, table); got != want {
				t.Errorf("%d records are left in %s, want %d", got, table, want)
			}
		}
		got, err := f.password(t, root, "old/live", 0)
		check(t, err)
		if got != "stays" {
			t.Fatalf("the live secret is %q", got)
		}
		records := f.records(t)
		for _, p := range want {
			if !slices.Contains(records, "purgeoutcome allowed "+p+" administrators") {
				t.Errorf("the audit log does not name %s", p)
			}
		}
	})
}

func TestAPurgeIsBoundedByPrefixAndAge(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.empty(t, "a/old")
		f.empty(t, "ab")
		f.clock.advance(40 * 24 * time.Hour)
		f.empty(t, "a/young")
		month := 30 * 24 * time.Hour
		for _, c := range []struct {
			which secret.Purge
			want  []string
		}{
			{secret.Purge{OlderThan: month}, []string{"a/old", "ab"}},
			{secret.Purge{Prefix: path("a")}, []string{"a/old", "a/young"}},
			{secret.Purge{Prefix: path("a"), OlderThan: month}, []string{"a/old"}},
			{secret.Purge{Prefix: path("a/young")}, []string{"a/young"}},
			{secret.Purge{Prefix: path("b")}, nil},
		} {
			c.which.DryRun = true
			if got, _ := f.purge(t, c.which); !slices.Equal(got, c.want) {
				t.Errorf("%+v is about %v, want %v", c.which, got, c.want)
			}
		}
	})
}

func TestAgeCountsFromWhenTheSecretBecameEmpty(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "a", "password", "1")
		f.clock.advance(40 * 24 * time.Hour)
		_, err := f.Delete(t.Context(), as(root), path("a"), secret.Selection{All: true})
		check(t, err)
		f.clock.advance(time.Hour)
		// Deleting again what is deleted does not make it younger.
		_, err = f.Delete(t.Context(), as(root), path("a"), secret.Selection{All: true})
		check(t, err)
		if got, _ := f.purge(t, secret.Purge{DryRun: true, OlderThan: 30 * 24 * time.Hour}); len(got) > 0 {
			t.Errorf("an hour counts as 30 days: %v", got)
		}
		if got, _ := f.purge(t, secret.Purge{DryRun: true, OlderThan: time.Hour}); len(got) != 1 {
			t.Errorf("an hour does not count as one: %v", got)
		}
	})
}

func TestPurgeTakesSuperOnItsPower(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.empty(t, "a")
		f.allow(t, app, "**", policy.Super)
		for _, which := range []secret.Purge{{}, {DryRun: true}} {
			err := f.Purge(t.Context(), as(app), which, func(secret.PurgeProgress) error {
				t.Error("something was reported")
				return nil
			})
			wantError(t, err, secret.ErrDenied)
		}
		f.allow(t, app, "sys/purge", policy.Super)
		check(t, f.Purge(t.Context(), as(app), secret.Purge{}, func(secret.PurgeProgress) error { return nil }))
		if n := f.stored(t, backend.Secrets); n != 0 {
			t.Errorf("%d records are left", n)
		}
	})
}

func TestASecretWrittenDuringAPurgeSurvives(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		const secrets = 100
		for i := range secrets {
			f.empty(t, fmt.Sprintf("s/%d", i))
		}
		written := make([]error, secrets)
		var writers sync.WaitGroup
		start := make(chan struct{})
		for i := range secrets {
			writers.Go(func() {
				<-start
				_, written[i] = f.Put(t.Context(), as(root), path(fmt.Sprintf("s/%d", i)), values(t, "password", "new"))
			})
		}
		close(start)
		f.purge(t, secret.Purge{})
		writers.Wait()
		for i, err := range written {
			check(t, err)
			got, err := f.password(t, root, fmt.Sprintf("s/%d", i), 0)
			check(t, err)
			if got != "new" {
				t.Errorf("s/%d is %q", i, got)
			}
		}
	})
}

func TestAPurgedSecretLeavesNothingAndItsPathIsFree(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		before := f.put(t, "a/b/c", "password", "1").ID
		_, err := f.Delete(t.Context(), as(root), path("a/b/c"), secret.Selection{})
		check(t, err)
		f.purge(t, secret.Purge{})
		_, err = f.Describe(t.Context(), as(root), path("a/b/c"))
		wantError(t, err, secret.ErrNotFound)
		// The folders are gone with it, so one of them may be a secret now.
		f.put(t, "a/b", "password", "2")
		check(t, f.Close())
		f.open(t)
		if after := f.put(t, "a/b", "password", "3"); after.ID == before || after.Current != 2 {
			t.Errorf("the new secret is %+v", after)
		}
	})
}

func TestAHistoryTooLongForOneBatchIsPurgedInSteps(t *testing.T) {
	f := newFixture(t, drivers["memory"](t))
	const versions = vault.DestroyStep + 10
	for i := range versions {
		f.put(t, "long", "password", fmt.Sprint(i))
	}
	_, err := f.Delete(t.Context(), as(root), path("long"), secret.Selection{All: true})
	check(t, err)
	f.purge(t, secret.Purge{})
	for _, table := range []backend.Table{backend.Secrets, backend.Versions, backend.Payloads} {
		if n := f.stored(t, table); n != 0 {
			t.Errorf("%d records are left in %s", n, table)
		}
	}
}

func TestFoldersThatAnInterruptedPurgeLeftAreRemovedAtOpening(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "a/b/c", "password", "1")
		// As a purge leaves it that is cut off before the folders.
		for _, table := range []backend.Table{backend.Secrets, backend.Versions, backend.Payloads} {
			page, err := f.backend.Scan(t.Context(), backend.Query{Table: table, Limit: 100})
			check(t, err)
			for _, r := range page.Records {
				if table != backend.Secrets || r.Body[1] == 1 { // folders are kind 2
					f.commit(t, backend.Op{Record: backend.Record{Key: r.Key}, Delete: true})
				}
			}
		}
		if n := f.stored(t, backend.Secrets); n != 2 {
			t.Fatalf("%d folders are left, want 2", n)
		}
		check(t, f.Close())
		f.open(t)
		if n := f.stored(t, backend.Secrets); n != 0 {
			t.Errorf("%d folders are left", n)
		}
		f.put(t, "a", "password", "2")
	})
}

func (f *fixture) commit(t testing.TB, ops ...backend.Op) {
	t.Helper()
	results, err := f.backend.Commit(t.Context(), []backend.Batch{{Ops: ops}})
	check(t, err)
	if results[0].Conflict {
		t.Fatal("conflict")
	}
}

func TestAPurgeStopsWhenItsReportFails(t *testing.T) {
	f := newFixture(t, drivers["memory"](t))
	for i := range 450 {
		f.empty(t, fmt.Sprintf("s%03d", i))
	}
	stop := fmt.Errorf("the caller left")
	steps := 0
	err := f.Purge(t.Context(), as(root), secret.Purge{}, func(step secret.PurgeProgress) error {
		if steps += len(step.Paths); steps > 0 {
			return stop
		}
		return nil
	})
	wantError(t, err, stop)
	if left := f.stored(t, backend.Secrets); left != 450-steps || steps == 450 {
		t.Errorf("%d were purged, %d are left", steps, left)
	}
	purged, _ := f.purge(t, secret.Purge{})
	if len(purged) != 450-steps || f.stored(t, backend.Secrets) != 0 {
		t.Errorf("the second purge removed %d", len(purged))
	}
	if !strings.HasPrefix(purged[0], "s") {
		t.Error(purged[0])
	}
}
