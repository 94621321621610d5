// SPDX-License-Identifier: Apache-2.0

package vault_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

func (f *fixture) folder(t testing.TB, id spiffeid.ID, p string) string {
	t.Helper()
	var folder secret.Path
	if p != "" {
		folder = path(p)
	}
	entries, err := f.Folder(t.Context(), as(id), folder)
	check(t, err)
	var names []string
	for _, e := range entries {
		name := e.Path.Base()
		if e.Folder {
			name += "/"
		}
		names = append(names, name)
	}
	return strings.Join(names, " ")
}

func TestAViewShowsWhatItsIdentityMayList(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for _, p := range []string{"db/creds", "db/admin/root", "db-old", "web/tls", "web/a/b/c", "alone"} {
			f.put(t, p, "password", "x")
		}
		f.empty(t, "db/gone")
		f.empty(t, "void/gone")
		check(t, f.ApplyPolicies(t.Context(), as(root), []policy.Policy{
			{Name: "a", SPIFFEID: app.String(), Path: "db/*", Permissions: []policy.Permission{policy.Read}},
			{Name: "b", SPIFFEID: app.String(), Path: "web/a/**", Permissions: []policy.Permission{policy.List}},
		}))
		for _, c := range []struct {
			id         spiffeid.ID
			path, want string
		}{
			{root, "", "alone db/ db-old void/ web/"},
			{root, "db", "admin/ creds gone"},
			{root, "void", "gone"},
			{app, "", "db/ web/"},
			{app, "db", "creds gone"},
			{app, "web", "a/"},
			{app, "web/a/b", "c"},
			{app, "nowhere", ""},
			{other, "", ""},
		} {
			if got := f.folder(t, c.id, c.path); got != c.want {
				t.Errorf("%s sees %q in %q, want %q", c.id, got, c.path, c.want)
			}
		}
	})
}

func TestAFolderOfEmptySecretsIsThereAsItsListingSays(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.empty(t, "void/gone")
		entry, _, err := f.Look(t.Context(), as(root), path("void"))
		check(t, err)
		if !entry.Folder {
			t.Error("void is no folder")
		}
	})
}

func TestLookingAtWhatMayNotBeSeenIsAuditedAndAnsweredAsAbsent(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "db/creds", "password", "x")
		_, _, hidden := f.Look(t.Context(), as(app), path("db/creds"))
		wantError(t, hidden, secret.ErrNotFound)
		_, _, absent := f.Look(t.Context(), as(app), path("db/other"))
		wantError(t, absent, secret.ErrNotFound)
		if strings.ReplaceAll(hidden.Error(), "creds", "other") != absent.Error() {
			t.Errorf("the answers differ: %v, %v", hidden, absent)
		}
		_, _, err := f.Look(t.Context(), as(app), path("db"))
		wantError(t, err, secret.ErrNotFound)
		var lookups []string
		for _, r := range f.records(t) {
			if strings.HasPrefix(r, "lookup") {
				lookups = append(lookups, r)
			}
		}
		if !slices.Equal(lookups, []string{"lookup denied db/creds ", "lookup denied db "}) {
			t.Errorf("the audit log has %q", lookups)
		}
		f.allow(t, app, "db/creds", policy.List)
		entry, _, err := f.Look(t.Context(), as(app), path("db"))
		check(t, err)
		if !entry.Folder {
			t.Error("db is no folder")
		}
		_, info, err := f.Look(t.Context(), as(app), path("db/creds"))
		check(t, err)
		if info.Current != 1 || len(info.Keys) != 1 || info.Keys[0].Size != 1 || len(info.Versions) != 1 {
			t.Errorf("%+v", info)
		}
	})
}

func TestAFileOpensForWhoMayReadThroughAViewThatMay(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		info := f.put(t, "db/creds", "password", "x")
		f.allow(t, app, "db/*", policy.Read)
		f.allow(t, other, "db/*", policy.List)
		file := secret.File{Path: path("db/creds"), ID: info.ID, Version: 1}
		for _, c := range []struct {
			caller, view spiffeid.ID
			want         error
		}{
			{app, app, nil},
			{root, app, nil},
			{other, app, secret.ErrDenied},
			{app, other, secret.ErrDenied},
			{root, other, secret.ErrDenied},
			{spiffeid.RequireFromString("spiffe://example.org/nobody"), app, secret.ErrDenied},
			{app, spiffeid.RequireFromString("spiffe://example.com/app"), secret.ErrDenied},
		} {
			err := f.Open(t.Context(), as(c.caller), as(c.view), file)
			if !errors.Is(err, c.want) || (err == nil) != (c.want == nil) {
				t.Errorf("%s through the view of %s: %v", c.caller, c.view, err)
			}
		}
		records := f.records(t)
		if !slices.Contains(records, "open allowed db/creds test-app") || !slices.Contains(records, "open denied db/creds ") {
			t.Errorf("%q", records)
		}
	})
}

func TestAFileReadsItsOwnVersionUntilThatIsNotServedAnyMore(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		info := f.put(t, "db/creds", "password", "1")
		f.put(t, "db/creds", "password", "2")
		f.allow(t, app, "db/*", policy.Read)
		file := secret.File{Path: path("db/creds"), ID: info.ID, Version: 1}
		read := func() (string, error) {
			v, err := f.Read(t.Context(), as(app), file)
			if err != nil {
				return "", err
			}
			defer v.Wipe()
			key, err := secret.ParseKey("password")
			check(t, err)
			value, _ := v.Get(key)
			return string(value), nil
		}
		got, err := read()
		check(t, err)
		if got != "1" {
			t.Errorf("version 1 reads %q", got)
		}
		_, err = f.Delete(t.Context(), as(root), path("db/creds"), secret.Selection{Versions: []secret.Version{1}})
		check(t, err)
		_, err = read()
		wantError(t, err, secret.ErrNotFound)

		file.Version = 2
		check(t, f.DeletePolicy(t.Context(), as(root), "test-app"))
		_, err = read()
		wantError(t, err, secret.ErrDenied)

		f.allow(t, app, "db/*", policy.Read)
		_, err = f.Delete(t.Context(), as(root), path("db/creds"), secret.Selection{All: true})
		check(t, err)
		f.purge(t, secret.Purge{})
		f.put(t, "db/creds", "password", "new")
		f.put(t, "db/creds", "password", "newer")
		_, err = read()
		wantError(t, err, secret.ErrNotFound)
		err = f.Open(t.Context(), as(app), as(app), file)
		wantError(t, err, secret.ErrNotFound)
	})
}

func TestAFollowerIsToldOfEachChangeAfterItCanBeSeen(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		feed := f.Follow()
		defer feed.Close()
		f.put(t, "a", "password", "1")
		f.put(t, "b", "password", "1")
		changes, err := feed.Next(t.Context())
		check(t, err)
		if !slices.Contains(changes.Paths, path("a")) || changes.All {
			t.Errorf("%+v", changes)
		}
		f.allow(t, app, "a", policy.Read)
		for !changes.All {
			changes, err = feed.Next(t.Context())
			check(t, err)
		}
		ended, cancel := context.WithCancel(t.Context())
		cancel()
		_, err = feed.Next(ended)
		wantError(t, err, context.Canceled)
	})
}

func TestAFollowerThatFallsBehindIsToldToLookAtEverything(t *testing.T) {
	f := newFixture(t, drivers["memory"](t))
	feed := f.Follow()
	defer feed.Close()
	var writers sync.WaitGroup
	for i := range 10_001 {
		writers.Go(func() {
			if _, err := f.Put(t.Context(), as(root), path(fmt.Sprintf("s/%d", i)), values(t, "password", "x")); err != nil {
				t.Error(err)
			}
		})
	}
	writers.Wait()
	changes, err := feed.Next(t.Context())
	check(t, err)
	if !changes.All || len(changes.Paths) > 0 {
		t.Errorf("all %v, %d paths", changes.All, len(changes.Paths))
	}
}

func TestListingPagesWithoutGapsAndFoldsFolders(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		all := []string{"a", "a-b", "b/1", "b/2/x", "b/2/y", "b-c", "c/d/e"}
		for _, p := range all {
			f.put(t, p, "password", "x")
		}
		for limit := 1; limit <= len(all)+1; limit++ {
			for _, recursive := range []bool{true, false} {
				var got []string
				var after secret.Path
				for {
					entries, more, err := f.List(t.Context(), as(root), secret.Path{}, after, limit, recursive)
					check(t, err)
					for _, e := range entries {
						got = append(got, e.Path.String())
						after = e.Path
					}
					if !more {
						break
					}
				}
				want := []string{"a", "a-b", "b/1", "b/2/x", "b/2/y", "b-c", "c/d/e"}
				if !recursive {
					want = []string{"a", "a-b", "b", "b-c", "c"}
				}
				if !slices.Equal(got, want) {
					t.Errorf("limit %d, recursive %v: %v", limit, recursive, got)
				}
			}
		}
		entries, _, err := f.List(t.Context(), as(root), path("b"), secret.Path{}, 10, false)
		check(t, err)
		if len(entries) != 2 || entries[1].Path != path("b/2") || !entries[1].Folder {
			t.Errorf("%v", entries)
		}
	})
}

func TestPoliciesAreAppliedAllOrNone(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		good := policy.Policy{Name: "good", SPIFFEID: app.String(), Path: "db/*", Permissions: []policy.Permission{policy.Read}}
		bad := good
		bad.Name, bad.Path = "bad", "sys/*"
		wantError(t, f.ApplyPolicies(t.Context(), as(root), []policy.Policy{good, bad}), secret.ErrInvalid)
		all, err := f.Policies(t.Context(), as(root))
		check(t, err)
		if len(all) != 0 {
			t.Errorf("%v were applied", all)
		}
		check(t, f.ApplyPolicies(t.Context(), as(root), []policy.Policy{good}))
		wantError(t, f.ApplyPolicies(t.Context(), as(app), []policy.Policy{good}), secret.ErrDenied)
		_, err = f.Policies(t.Context(), as(app))
		wantError(t, err, secret.ErrDenied)
		wantError(t, f.DeletePolicy(t.Context(), as(app), "good"), secret.ErrDenied)
		wantError(t, f.DeletePolicy(t.Context(), as(root), "absent"), secret.ErrNotFound)
		explanation, err := f.Explain(t.Context(), as(root), app, policy.Read, path("db/creds"))
		check(t, err)
		if explanation.Decision.Policy != "good" {
			t.Errorf("%+v", explanation)
		}
		check(t, f.Reload(t.Context(), []spiffeid.ID{other}))
		wantError(t, f.DeletePolicy(t.Context(), as(root), "good"), secret.ErrDenied)
		check(t, f.DeletePolicy(t.Context(), as(other), "good"))
	})
}
