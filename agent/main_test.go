// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// failer is what testing and rapid have in common.
type failer interface {
	Helper()
	Fatal(...any)
}

func check(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// shortDir is a folder with a path that Unix sockets have room for.
func shortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kh") //nolint:usetesting // t.TempDir is too long for a Unix socket
	check(t, err)
	check(t, os.Chmod(dir, 0o755))
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

var (
	admin  = spiffeid.RequireFromString("spiffe://dev.keyhole.test/admin")
	nobody = spiffeid.RequireFromString("spiffe://dev.keyhole.test/nobody")
)

func as(id spiffeid.ID) identity.Caller {
	return identity.Caller{IDs: []spiffeid.ID{id}, Source: identity.X509, Request: "test"}
}

// surroundings are what an agent needs: a trust domain, and a store with its
// key.
type surroundings struct {
	dir    string
	domain *devdomain.Server
	config Config
	log    *lockedBuffer
	level  *slog.LevelVar
}

func surround(t testing.TB) *surroundings {
	t.Helper()
	s := &surroundings{dir: shortDir(t), log: &lockedBuffer{}, level: new(slog.LevelVar)}
	domain := spiffeid.RequireTrustDomainFromString(devdomain.DefaultTrustDomain)
	var err error
	s.domain, err = devdomain.New(devdomain.Config{
		Dir: filepath.Join(s.dir, "spiffe"), TrustDomain: domain, Self: spiffeid.RequireFromPath(domain, "/keyhole/agent"),
	})
	check(t, err)
	t.Cleanup(func() { check(t, s.domain.Close()) })
	s.config = DefaultConfig()
	s.config.TrustDomain = domain.Name()
	s.config.Administrators = []string{admin.String()}
	s.config.Socket, s.config.AdminSocket = filepath.Join(s.dir, "agent.sock"), filepath.Join(s.dir, "admin.sock")
	s.config.Identity.WorkloadAPI, s.config.Identity.Broker = s.domain.WorkloadAddress(), s.domain.BrokerAddress()
	s.config.Store.Path = filepath.Join(s.dir, "store", "keyhole.db")
	s.config.Unlock.Keyfile = filepath.Join(s.dir, "root.key")
	s.config.Audit.Path = filepath.Join(s.dir, "audit")
	s.config.Mount.Enabled = false
	s.config.Mount.Path, s.config.Mount.Link = filepath.Join(s.dir, "run", "fs"), filepath.Join(s.dir, "run", "secrets")
	check(t, InitKeyfile(t.Context(), s.config.Store, s.config.Unlock.Keyfile))
	return s
}

func (s *surroundings) options(t testing.TB) Options {
	t.Helper()
	opener, err := Opener(s.config, nil)
	check(t, err)
	return Options{
		Opener: opener, Version: "test", Level: s.level,
		Logger: slog.New(slog.NewJSONHandler(s.log, &slog.HandlerOptions{Level: s.level})),
	}
}

// open makes an agent. The test closes it, or runs it.
func (s *surroundings) open(t testing.TB) *Agent {
	t.Helper()
	a, err := New(t.Context(), s.config, s.options(t))
	check(t, err)
	return a
}

// start makes an agent that is closed when the test ends.
func (s *surroundings) start(t testing.TB) *Agent {
	t.Helper()
	a := s.open(t)
	t.Cleanup(func() { check(t, a.close(context.Background())) })
	<-a.workload.Ready()
	if !a.Identifies(t.Context()) {
		t.Fatal("the broker is not proven")
	}
	return a
}

// lockedBuffer is a log that is read while it is written.
type lockedBuffer struct {
	mu     sync.Mutex
	buffer bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buffer.String()
}

// wants checks an error's identity and words.
func wants(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("%v is not %v", err, kind)
		return
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%v lacks %q", err, word)
		}
	}
}
