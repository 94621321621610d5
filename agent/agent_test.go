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
	for range 2 { // the second time, the store is gone
		var errs []error
		_, err := c.Put(ctx, hidden, values(t, key, value))
		errs = append(errs, err)
		_, err = c.Put(ctx, secret.MustParsePath(path+"/below"), values(t, key, value))
		errs = append(errs, err)
		_, err = c.Get(ctx, hidden, 0)
		errs = append(errs, err)
		_, err = c.Get(ctx, hidden, 99)
		errs = append(errs, err)
		_, err = c.Describe(ctx, hidden)
		errs = append(errs, err)
		_, err = c.Get(ctx, secret.MustParsePath("hidden/other"), 0)
		errs = append(errs, err)
		_, err = c.Delete(ctx, hidden, secret.Selection{All: true})
		errs = append(errs, err)
		for _, err := range c.Purge(ctx, secret.Purge{Prefix: hidden}) {
			errs = append(errs, err)
		}
		if err := errors.Join(errs...); err == nil || strings.Contains(err.Error(), value) {
			t.Errorf("%v", err)
		}
		check(t, os.Rename(s.config.Store.Path, s.config.Store.Path+".away"))
		defer func() { check(t, os.Rename(s.config.Store.Path+".away", s.config.Store.Path)) }()
		if _, err := os.Lstat(s.config.Store.Path); err == nil {
			break
		}
	}
	check(t, c.Close())
	if log := s.log.String(); strings.Contains(log, "hidden") || log == "" {
		t.Error(log)
	}
}
