// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/backend/sqlite"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
)

var dbCreds = secret.MustParsePath("db/creds")

func values(t testing.TB, key, value string) secret.Values {
	t.Helper()
	v, err := secret.NewValues(map[string][]byte{key: []byte(value)})
	check(t, err)
	return v
}

// requireClosed checks that nothing of an agent is left: its places are free.
func (s *surroundings) requireClosed(t testing.TB) {
	t.Helper()
	for _, path := range []string{s.config.Socket, s.config.AdminSocket, s.config.Mount.Link} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
	b, err := sqlite.Open(sqlite.Config{Path: s.config.Store.Path})
	check(t, err)
	check(t, b.Close())
}

func TestAnAgentServesUntilItsContextEnds(t *testing.T) {
	s := surround(t)
	opener := s.options(t).Opener
	a, err := New(t.Context(), s.config, Options{Opener: opener, Version: "test"}) // neither logger nor level
	check(t, err)
	c, err := client.New(t.Context(), client.Config{Socket: s.config.Socket, AdminSocket: s.config.AdminSocket, WorkloadAPI: s.config.Identity.WorkloadAPI})
	check(t, err)
	check(t, c.Wait(t.Context()))
	check(t, c.Close())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- a.Run(ctx) }()
	cancel()
	check(t, <-done)
	s.requireClosed(t)
	if _, _, err := seal.Create([16]byte{1}, seal.NewSlot{Name: "x", Opener: opener}); err == nil {
		t.Error("what opened the store still opens one")
	}
}

func TestWhatWasOpenedLastIsClosedFirst(t *testing.T) {
	s := surround(t)
	s.config.Mount.Enabled = os.Geteuid() == 0
	a := s.open(t)
	var order []string
	for _, c := range slices.Backward(a.closers) {
		order = append(order, strings.TrimPrefix(c.what, "the "))
	}
	want := []string{"sockets", "mount", "process identity", "broker's check", "broker", "Workload API", "vault", "audit log", "keys", "store"}
	if a.mount == nil {
		want = slices.DeleteFunc(want, func(what string) bool { return what == "mount" })
	}
	if !slices.Equal(order, want) {
		t.Errorf("closed in the order %q", order)
	}
	check(t, a.close(t.Context()))
	s.requireClosed(t)
}

func TestAnAgentThatCannotStartLeavesNothingOpen(t *testing.T) {
	notAFolder := filepath.Join(t.TempDir(), "file")
	check(t, os.WriteFile(notAFolder, nil, 0o600))
	for name, c := range map[string]struct {
		change func(*surroundings)
		kind   error
		words  string
	}{
		"configuration": {func(s *surroundings) { s.config.TrustDomain = "" }, secret.ErrInvalid, "trust_domain"},
		"no store":      {func(s *surroundings) { s.config.Store.Path = filepath.Join(s.dir, "x", "y.db") }, secret.ErrNotFound, "keyhole init"},
		"audit log":     {func(s *surroundings) { s.config.Audit.Path = filepath.Join(notAFolder, "audit") }, unix.ENOTDIR, "audit"},
		"Workload API":  {func(s *surroundings) { s.config.Identity.WorkloadAPI = "unix://relative" }, secret.ErrInvalid, "identity.workload_api"},
		"link":          {func(s *surroundings) { s.config.Mount.Enabled, s.config.Mount.Link = true, s.config.Unlock.Keyfile }, secret.ErrInvalid, "something else is there"},
		"socket":        {func(s *surroundings) { s.config.AdminSocket = s.config.Unlock.Keyfile }, secret.ErrInvalid, "there is something else, and it stays"},
	} {
		t.Run(name, func(t *testing.T) {
			s := surround(t)
			options, before := s.options(t), s.config
			c.change(s)
			a, err := New(t.Context(), s.config, options)
			wants(t, err, c.kind, c.words)
			if a != nil {
				t.Error("there is an agent")
			}
			s.config = before
			s.requireClosed(t)
		})
	}
}

func TestAWrongKeyOpensNothing(t *testing.T) {
	s := surround(t)
	options := s.options(t)
	var err error
	options.Opener, err = seal.NewKeyfile(filepath.Join(s.dir, "other.key"))
	check(t, err)
	_, err = New(t.Context(), s.config, options)
	wants(t, err, secret.ErrDenied, "unlocking the store")
	options.Opener = nil
	_, err = New(t.Context(), s.config, options)
	wants(t, err, secret.ErrSealed, "nothing opens the store")
	s.requireClosed(t)
}

func TestAStoreWithoutARootKeyIsNotGivenOne(t *testing.T) {
	s := surround(t)
	s.config.Store.Path = filepath.Join(s.dir, "bare", "keyhole.db")
	b, err := sqlite.Open(sqlite.Config{Path: s.config.Store.Path})
	check(t, err)
	check(t, b.Close())
	_, err = New(t.Context(), s.config, s.options(t))
	wants(t, err, secret.ErrSealed, "run keyhole init first")
}

func TestASecondAgentSaysWhoIsInItsWay(t *testing.T) {
	pid := strconv.Itoa(os.Getpid())
	first := surround(t)
	first.config.Mount.Enabled = os.Geteuid() == 0
	first.start(t)

	_, err := New(t.Context(), first.config, first.options(t))
	wants(t, err, secret.ErrInUse, first.config.Store.Path, pid)

	second := surround(t)
	second.config.Socket = first.config.Socket
	_, err = New(t.Context(), second.config, second.options(t))
	wants(t, err, secret.ErrInUse, first.config.Socket, pid)

	if !first.config.Mount.Enabled {
		return
	}
	third := surround(t)
	third.config.Mount = first.config.Mount
	_, err = New(t.Context(), third.config, third.options(t))
	wants(t, err, secret.ErrInUse, "mount", pid)
	third.config.Mount.Link = filepath.Join(third.dir, "none")
	third.requireClosed(t)
}

func TestAStartThatIsCancelledLeavesNothingOpen(t *testing.T) {
	s := surround(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := New(ctx, s.config, s.options(t))
	wants(t, err, context.Canceled)
	s.requireClosed(t)
}

func TestAnAgentThatServesNobodyEnds(t *testing.T) {
	s := surround(t)
	a := s.open(t)
	check(t, a.sockets.Close(t.Context()))
	if err := a.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "served no longer") {
		t.Errorf("%v", err)
	}
	s.requireClosed(t)
}

func TestTheFoldersOfSocketsAndMountAreMadeForEverybody(t *testing.T) {
	defer unix.Umask(unix.Umask(0o077))
	s := surround(t)
	run := filepath.Join(s.dir, "a", "b")
	s.config.Socket, s.config.AdminSocket = filepath.Join(run, "agent.sock"), filepath.Join(run, "admin.sock")
	s.config.Mount.Enabled = os.Geteuid() == 0
	s.start(t)
	folders := []string{filepath.Dir(run), run}
	if s.config.Mount.Enabled {
		folders = append(folders, filepath.Dir(s.config.Mount.Path))
	}
	for _, folder := range folders {
		if info, err := os.Stat(folder); err != nil || info.Mode().Perm() != 0o755 {
			t.Errorf("%s: %v, %v", folder, info, err)
		}
	}
}

func TestAStoreThatForgetsNeedsNoKey(t *testing.T) {
	s := surround(t)
	s.config.Store.Driver = "memory"
	opener, err := Opener(s.config, nil)
	check(t, err)
	if opener != nil {
		t.Errorf("%T", opener)
	}
	a := s.start(t)
	if _, err := a.vault.Put(t.Context(), as(admin), dbCreds, values(t, "k", "v")); err != nil {
		t.Error(err)
	}
	if !strings.Contains(s.log.String(), "forgets everything") {
		t.Error(s.log)
	}
	status, err := a.Status(t.Context(), as(admin))
	check(t, err)
	if c := componentNamed(t, status, "store"); !c.Healthy || c.Message != "in memory, forgotten when the agent stops, 1 secrets" {
		t.Errorf("%+v", c)
	}
}

// TestTheLogNamesNeitherSecretsNorValues, at its usual level, whatever is done
// to them.
func TestTheLogNamesNeitherSecretsNorValues(t *testing.T) {
	const path, key, value = "hidden/place", "hidden-key", "hidden-value"
	hidden := secret.MustParsePath(path)
	s := surround(t)
	a := s.start(t)
	ctx := t.Context()
	check(t, a.vault.ApplyPolicies(ctx, as(admin), []policy.Policy{{Name: "own", SPIFFEID: "spiffe://dev.keyhole.test/keyhole/agent", Path: path, Permissions: []policy.Permission{policy.Super}}}))
	c, err := client.New(ctx, client.Config{Socket: s.config.Socket, AdminSocket: s.config.AdminSocket, WorkloadAPI: s.config.Identity.WorkloadAPI})
	check(t, err)
	useAll(t, c, hidden, values(t, key, value))
	check(t, os.Rename(s.config.Store.Path, s.config.Store.Path+".away"))
	useAll(t, c, hidden, values(t, key, value))
	check(t, os.Rename(s.config.Store.Path+".away", s.config.Store.Path))
	check(t, c.Close())
	if log := s.log.String(); strings.Contains(log, "hidden") || log == "" {
		t.Error(log)
	}
}

// useAll makes every kind of request about a secret. Some of them fail.
func useAll(t testing.TB, c *client.Client, path secret.Path, v secret.Values) {
	t.Helper()
	ctx := t.Context()
	below := secret.MustParsePath(path.String() + "/below")
	var errs []error
	done := func(err error) { errs = append(errs, err) }
	for _, p := range []secret.Path{path, below} {
		_, err := c.Put(ctx, p, v)
		done(err)
		_, err = c.Get(ctx, p, 0)
		done(err)
		_, err = c.Describe(ctx, p)
		done(err)
		_, err = c.Delete(ctx, p, secret.Selection{All: true})
		done(err)
		for _, err := range c.Purge(ctx, secret.Purge{Prefix: p}) {
			done(err)
		}
	}
	if errors.Join(errs...) == nil {
		t.Error("nothing failed")
	}
}
