// SPDX-License-Identifier: Apache-2.0

package vault_test

import (
	"errors"
	"slices"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// rows returns the records of a table by the order of their IDs.
func (f *fixture) rows(t testing.TB, table backend.Table) []backend.Record {
	t.Helper()
	page, err := f.backend.Scan(t.Context(), backend.Query{Table: table, Limit: 1000})
	check(t, err)
	return page.Records
}

// replace puts a body in the place of another, as somebody could who can write
// the store.
func (f *fixture) replace(t testing.TB, r backend.Record, body []byte) {
	t.Helper()
	r.Body = body
	f.commit(t, backend.Op{Record: r})
}

func TestAChangedByteIsRefusedAndTheOthersAreServed(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "victim", "password", "hunter2")
		f.put(t, "bystander", "password", "fine")
		victim := f.find(t, "victim")
		for _, r := range victim {
			for i := range r.Body {
				changed := slices.Clone(r.Body)
				changed[i] ^= 0x40
				f.replace(t, r, changed)
				check(t, f.Close())
				f.open(t)
				if err := f.serves(t, "victim", "hunter2"); !errors.Is(err, secret.ErrTampered) && !errors.Is(err, secret.ErrNewerFormat) {
					t.Fatalf("byte %d of %s: %v", i, r.Key.Table, err)
				}
				if got, err := f.password(t, root, "bystander", 0); err != nil || got != "fine" {
					t.Fatalf("byte %d of %s: the bystander is %q, %v", i, r.Key.Table, got, err)
				}
			}
			f.replace(t, r, r.Body)
		}
		check(t, f.Close())
		f.open(t)
		got, err := f.password(t, root, "victim", 0)
		check(t, err)
		if got != "hunter2" {
			t.Fatalf("got %q", got)
		}
	})
}

// serves reads a secret and its description. A read of the current version does
// not open the history, so damage there may leave it to the description to
// refuse; but what is read is the right value, always.
func (f *fixture) serves(t testing.TB, p, want string) error {
	t.Helper()
	got, err := f.password(t, root, p, 0)
	if err == nil && got != want {
		t.Fatalf("%s is %q, want %q", p, got, want)
	}
	if err == nil {
		_, err = f.Describe(t.Context(), as(root), path(p))
	}
	return err
}

// find returns the three records that hold the current version of a secret with
// one version, found by making the only change that touches them.
func (f *fixture) find(t testing.TB, p string) []backend.Record {
	t.Helper()
	info, err := f.Describe(t.Context(), as(root), path(p))
	check(t, err)
	lookup := f.keys.Locate(path(p))
	version := string(info.ID[:]) + "\x00\x00\x00\x00\x00\x00\x00\x01"
	records, _, err := f.backend.Get(t.Context(), []backend.Key{
		{Table: backend.Secrets, ID: string(lookup[:])},
		{Table: backend.Versions, ID: version},
		{Table: backend.Payloads, ID: version},
	})
	check(t, err)
	if len(records) != 3 {
		t.Fatalf("%d records", len(records))
	}
	return records
}

func TestSwappedRowsAreRefused(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "a", "password", "of a")
		f.put(t, "b", "password", "of b")
		a, b := f.find(t, "a"), f.find(t, "b")
		for i := range a {
			f.replace(t, a[i], b[i].Body)
			f.replace(t, b[i], a[i].Body)
			check(t, f.Close())
			f.open(t)
			for _, p := range []string{"a", "b"} {
				_, err := f.password(t, root, p, 0)
				wantError(t, err, secret.ErrTampered)
			}
			f.replace(t, a[i], a[i].Body)
			f.replace(t, b[i], b[i].Body)
		}
	})
}

func TestACutRowIsRefused(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "a", "password", "of a")
		for _, r := range f.find(t, "a") {
			for _, length := range []int{0, 1, 20, len(r.Body) - 1} {
				f.replace(t, r, r.Body[:min(length, len(r.Body)-1)])
				check(t, f.Close())
				f.open(t)
				wantError(t, f.serves(t, "a", "of a"), secret.ErrTampered)
			}
			f.commit(t, backend.Op{Record: backend.Record{Key: r.Key}, Delete: true})
			if r.Key.Table != backend.Secrets { // a name that is gone is absent
				check(t, f.Close())
				f.open(t)
				_, err := f.password(t, root, "a", 0)
				wantError(t, err, secret.ErrTampered)
			}
			f.replace(t, r, r.Body)
		}
	})
}

func TestAWriterOfTheStoreCannotUndeleteOneVersion(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "a", "password", "1")
		_, err := f.Delete(t.Context(), as(root), path("a"), secret.Selection{})
		check(t, err)
		r := f.find(t, "a")[0]
		r.Hints.Empty = 0
		f.commit(t, backend.Op{Record: r})
		check(t, f.Close())
		f.open(t)
		_, err = f.password(t, root, "a", 0)
		wantError(t, err, secret.ErrNotFound)
	})
}

func TestAPolicyThatDoesNotOpenKeepsTheVaultShut(t *testing.T) {
	f := newFixture(t, drivers["memory"](t))
	f.allow(t, app, "db/*", policy.Read)
	r := f.rows(t, backend.Policies)[0]
	changed := slices.Clone(r.Body)
	changed[len(changed)-1] ^= 1
	f.replace(t, r, changed)
	check(t, f.Close())
	err := f.tryOpen()
	wantError(t, err, secret.ErrTampered)
	f.replace(t, r, r.Body)
	f.open(t)
}

func TestAnOperationFailsWhenItCannotBeAudited(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "a", "password", "1")
		// Appending works until the folder is needed for a new segment, so the
		// log is closed under the vault.
		check(t, f.log.Close())
		_, err := f.password(t, root, "a", 0)
		wantError(t, err, secret.ErrUnavailable)
		_, err = f.Put(t.Context(), as(root), path("a"), values(t, "password", "2"))
		wantError(t, err, secret.ErrUnavailable)
		_, err = f.Describe(t.Context(), as(root), path("a"))
		wantError(t, err, secret.ErrUnavailable)
		check(t, f.Close())
		f.reopenLog(t)
		f.open(t)
		got, err := f.password(t, root, "a", 0)
		check(t, err)
		if got != "1" {
			t.Errorf("a write happened without its audit record: %q", got)
		}
	})
}
