// SPDX-License-Identifier: Apache-2.0

package vault_test

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/agent/vault"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/backend/memory"
	"github.com/keyhole-agent/keyhole/backend/sqlite"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

var (
	root  = spiffeid.RequireFromString("spiffe://example.org/root")
	app   = spiffeid.RequireFromString("spiffe://example.org/app")
	other = spiffeid.RequireFromString("spiffe://example.org/other")
)

func as(id spiffeid.ID) identity.Caller {
	return identity.Caller{IDs: []spiffeid.ID{id}, Source: identity.X509, Request: "test"}
}

// fixture is a vault on a real store, with everything below it.
type fixture struct {
	*vault.Vault
	backend backend.Backend
	keys    *seal.Keyring
	log     *audit.Log
	logDir  string
	clock   *clock
}

type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// drivers are the stores that the tests run on.
var drivers = map[string]func(t testing.TB) backend.Backend{
	"memory": func(t testing.TB) backend.Backend {
		b, err := memory.New(memory.Config{})
		check(t, err)
		return b
	},
	"sqlite": func(t testing.TB) backend.Backend {
		b, err := sqlite.Open(sqlite.Config{Path: filepath.Join(t.TempDir(), "store", "keyhole.db")})
		check(t, err)
		return b
	},
}

// onEach runs a test on each driver.
func onEach(t *testing.T, test func(t *testing.T, f *fixture)) {
	for name, open := range drivers {
		t.Run(name, func(t *testing.T) { test(t, newFixture(t, open(t))) })
	}
}

func newFixture(t testing.TB, b backend.Backend) *fixture {
	t.Helper()
	info, err := b.Info(t.Context())
	check(t, err)
	keyfile, err := seal.NewKeyfile(filepath.Join(t.TempDir(), "key"))
	check(t, err)
	keys, _, err := seal.Create(info.StoreID, seal.NewSlot{Name: "test", Created: time.Now(), Opener: keyfile})
	check(t, err)
	f := &fixture{backend: b, keys: keys, logDir: filepath.Join(t.TempDir(), "audit"), clock: &clock{now: time.Now()}}
	f.log, err = audit.Open(audit.Config{Dir: f.logDir, Key: keys.AuditKey(), Now: f.clock.Now})
	check(t, err)
	f.open(t)
	t.Cleanup(func() {
		check(t, f.Close())
		check(t, f.log.Close())
		check(t, b.Close())
		check(t, keys.Close())
	})
	return f
}

// open opens the vault, again after a Close.
func (f *fixture) open(t testing.TB) {
	t.Helper()
	check(t, f.tryOpen())
}

func (f *fixture) tryOpen() error {
	v, err := vault.Open(context.Background(), vault.Config{
		Backend: f.backend, Keys: f.keys, Log: f.log, Administrators: []spiffeid.ID{root}, Now: f.clock.Now,
	})
	if err == nil {
		f.Vault = v
	}
	return err
}

// reopenLog opens the audit log, again after a Close.
func (f *fixture) reopenLog(t testing.TB) {
	t.Helper()
	var err error
	f.log, err = audit.Open(audit.Config{Dir: f.logDir, Key: f.keys.AuditKey(), Now: f.clock.Now})
	check(t, err)
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantError(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error is %v, want %v", err, want)
	}
}

func path(text string) secret.Path { return secret.MustParsePath(text) }

func values(t testing.TB, pairs ...string) secret.Values {
	t.Helper()
	m := map[string][]byte{}
	for i := 0; i < len(pairs); i += 2 {
		m[pairs[i]] = []byte(pairs[i+1])
	}
	v, err := secret.NewValues(m)
	check(t, err)
	return v
}

func (f *fixture) put(t testing.TB, p string, pairs ...string) secret.Info {
	t.Helper()
	info, err := f.Put(t.Context(), as(root), path(p), values(t, pairs...))
	check(t, err)
	return info
}

func (f *fixture) allow(t testing.TB, id spiffeid.ID, pattern string, permissions ...policy.Permission) {
	t.Helper()
	check(t, f.ApplyPolicies(t.Context(), as(root), []policy.Policy{{
		Name: "test-" + strings.Trim(id.Path(), "/"), SPIFFEID: id.String(), Path: pattern, Permissions: permissions,
	}}))
}

func (f *fixture) password(t testing.TB, caller spiffeid.ID, p string, version secret.Version) (string, error) {
	t.Helper()
	got, err := f.Get(t.Context(), as(caller), path(p), version)
	if err != nil {
		return "", err
	}
	defer got.Values.Wipe()
	key, err := secret.ParseKey("password")
	check(t, err)
	value, _ := got.Values.Get(key)
	return string(value), nil
}

// records returns the audit log as "operation decision path policy".
func (f *fixture) records(t testing.TB) []string {
	t.Helper()
	var all []string
	for r, err := range audit.Records(f.logDir) {
		check(t, err)
		all = append(all, fmt.Sprintf("%s%s %s %s %s", r.Operation, r.Phase, r.Decision, r.Path, r.Policy))
	}
	return all
}

func TestEachPutIsANewVersionAndTheLatestLiveOneIsCurrent(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		for i := range 3 {
			info := f.put(t, "db/creds", "password", fmt.Sprint("p", i+1), "user", "app")
			if info.Current != secret.Version(i+1) {
				t.Fatalf("put %d made version %d current", i+1, info.Current)
			}
		}
		for version, want := range []string{"p3", "p1", "p2", "p3"} {
			got, err := f.password(t, root, "db/creds", secret.Version(version))
			check(t, err)
			if got != want {
				t.Errorf("version %d is %q, want %q", version, got, want)
			}
		}
		_, err := f.password(t, root, "db/creds", 4)
		wantError(t, err, secret.ErrNotFound)

		info, err := f.Delete(t.Context(), as(root), path("db/creds"), secret.Selection{})
		check(t, err)
		if info.Current != 2 || len(info.Keys) != 2 {
			t.Fatalf("after deleting the current version: %+v", info)
		}
		info, err = f.Delete(t.Context(), as(root), path("db/creds"), secret.Selection{All: true})
		check(t, err)
		if info.Current != 0 || info.EmptyAt.IsZero() {
			t.Fatalf("after deleting all versions: %+v", info)
		}
		_, err = f.password(t, root, "db/creds", 0)
		wantError(t, err, secret.ErrNotFound)
		if info := f.put(t, "db/creds", "password", "p4"); info.Current != 4 || !info.EmptyAt.IsZero() {
			t.Fatalf("a version number was used again: %+v", info)
		}
	})
}

func TestWhatWasWrittenIsThereAfterOpeningAgain(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "db/creds", "password", "hunter2")
		f.put(t, "gone", "password", "x")
		_, err := f.Delete(t.Context(), as(root), path("gone"), secret.Selection{})
		check(t, err)
		f.allow(t, app, "db/**", policy.Read)
		check(t, f.Close())
		f.open(t)
		got, err := f.password(t, app, "db/creds", 0)
		check(t, err)
		if got != "hunter2" {
			t.Fatalf("got %q", got)
		}
		info, err := f.Describe(t.Context(), as(root), path("gone"))
		check(t, err)
		if info.Current != 0 || len(info.Versions) != 1 || info.Versions[0].State != secret.Deleted {
			t.Fatalf("the deleted secret came back as %+v", info)
		}
	})
}

func TestACallerWithoutPermissionLearnsNothing(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		f.put(t, "db/creds", "password", "hunter2")
		f.put(t, "app/a", "password", "a")
		f.allow(t, app, "app/*", policy.List)
		f.allow(t, other, "db/creds", policy.Write)
		ctx := t.Context()

		_, present := f.Get(ctx, as(other), path("app/a"), 0)
		_, absent := f.Get(ctx, as(other), path("app/b"), 0)
		wantError(t, present, secret.ErrDenied)
		wantError(t, absent, secret.ErrDenied)
		if strings.ReplaceAll(present.Error(), "app/a", "app/b") != absent.Error() {
			t.Errorf("the answers differ: %v, %v", present, absent)
		}
		_, err := f.Get(ctx, as(app), path("app/a"), 0)
		wantError(t, err, secret.ErrDenied)
		_, err = f.Describe(ctx, as(app), path("app/b"))
		wantError(t, err, secret.ErrNotFound)
		_, err = f.Get(ctx, as(other), path("db/creds"), 0)
		wantError(t, err, secret.ErrDenied)
		_, err = f.Get(ctx, identity.Caller{}, path("db/creds"), 0)
		wantError(t, err, secret.ErrDenied)
		_, _, err = f.List(ctx, identity.Caller{}, secret.Path{}, secret.Path{}, 10, true)
		wantError(t, err, secret.ErrDenied)
		_, err = f.Delete(ctx, as(app), path("app/b"), secret.Selection{})
		wantError(t, err, secret.ErrDenied)

		entries, _, err := f.List(ctx, as(app), secret.Path{}, secret.Path{}, 10, true)
		check(t, err)
		if len(entries) != 1 || entries[0].Path != path("app/a") {
			t.Errorf("the listing shows %v", entries)
		}
		if records := f.records(t); !slices.ContainsFunc(records, func(r string) bool { return strings.HasPrefix(r, "get denied app/a") }) {
			t.Errorf("the denial is not in the audit log: %q", records)
		}
	})
}

func TestAPathIsASecretOrAFolder(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		ctx := t.Context()
		f.put(t, "a/b", "password", "x")
		for _, p := range []string{"a", "a/b/c", "a/b/c/d"} {
			_, err := f.Put(ctx, as(root), path(p), values(t, "password", "y"))
			wantError(t, err, secret.ErrExists)
		}
		for _, p := range []string{"sys", "sys/purge", "purge"} {
			_, err := f.Put(ctx, as(root), path(p), values(t, "password", "y"))
			if !errors.Is(err, secret.ErrInvalid) && !errors.Is(err, secret.ErrDenied) {
				t.Errorf("put %s: %v", p, err)
			}
		}
		// Both at once: exactly one of the two wins, whichever comes first.
		for i := range 50 {
			upper, lower := path(fmt.Sprintf("race/%d", i)), path(fmt.Sprintf("race/%d/below", i))
			var errs [2]error
			var both sync.WaitGroup
			for n, p := range []secret.Path{upper, lower} {
				both.Go(func() { _, errs[n] = f.Put(ctx, as(root), p, values(t, "password", "z")) })
			}
			both.Wait()
			if (errs[0] == nil) == (errs[1] == nil) {
				t.Fatalf("put %s: %v; put %s: %v", upper, errs[0], lower, errs[1])
			}
			wantError(t, errors.Join(errs[0], errs[1]), secret.ErrExists)
		}
	})
}

func TestConcurrentWritersLoseNoVersion(t *testing.T) {
	onEach(t, func(t *testing.T, f *fixture) {
		const writers = 20
		var all sync.WaitGroup
		versions := make([]secret.Version, writers)
		for i := range writers {
			all.Go(func() {
				info, err := f.Put(t.Context(), as(root), path("hot"), values(t, "password", fmt.Sprint(i)))
				if err != nil {
					t.Error(err)
				}
				versions[i] = info.Current
			})
		}
		all.Wait()
		for i, version := range versions {
			got, err := f.password(t, root, "hot", version)
			check(t, err)
			if got != fmt.Sprint(i) {
				t.Errorf("version %d is %q, want %d's", version, got, i)
			}
		}
	})
}

func TestAGroupOfWritesCostsTwoSyncsOfTheLogAndOneCommit(t *testing.T) {
	f := newFixture(t, drivers["sqlite"](t))
	before := f.log.Stats().Syncs
	f.put(t, "one", "password", "x")
	if syncs := f.log.Stats().Syncs - before; syncs > 2 {
		t.Errorf("one write alone synced the audit log %d times", syncs)
	}
}
