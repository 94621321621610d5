// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"errors"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"

	"github.com/keyhole-agent/keyhole/identity/broker"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var agentID = dev("/keyhole")

// patience is for a machine that is busy with other things.
const patience = 30 * time.Second

func dev(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://dev.keyhole.test" + path)
}

func startDomain(t *testing.T, config devdomain.Config) *devdomain.Server {
	t.Helper()
	config.Dir = t.TempDir()
	if config.Self.IsZero() && config.TrustDomain.IsZero() {
		config.Self = agentID
	}
	s, err := devdomain.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

// openSource returns our own identity by the Workload API.
func openSource(t *testing.T, domain *devdomain.Server) *workload.Source {
	t.Helper()
	s, err := workload.Open(t.Context(), workload.Config{Address: domain.WorkloadAddress()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	select {
	case <-s.Ready():
	case <-time.After(patience):
		t.Fatalf("no SVID: %v", s.Health())
	}
	return s
}

func newClient(t *testing.T, config broker.Config) *broker.Client {
	t.Helper()
	if config.TrustDomain.IsZero() {
		config.TrustDomain = agentID.TrustDomain()
	}
	if config.Timeout == 0 {
		config.Timeout = patience
	}
	c, err := broker.New(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// connect is a client with our own identity, for a domain that vouches for it.
func connect(t *testing.T, domain *devdomain.Server) *broker.Client {
	t.Helper()
	return newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: openSource(t, domain)})
}

// fixed is an identity that somebody put there.
type fixed struct {
	*x509svid.SVID
	x509bundle.Source
}

func fixedSource(t *testing.T, domain *devdomain.Server, id spiffeid.ID) broker.Source {
	t.Helper()
	svid, err := domain.Issue(devdomain.Leaf{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	return fixed{svid, domain}
}

// runAs starts a process of the user that lives until the test ends.
func runAs(t *testing.T, user uint32) int {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("this test starts processes of other users: run it as root")
	default:
		t.Skip("SKIPPED: this test starts processes of other users, and needs root")
	}
	child := exec.Command("cat") // waits for its input to end
	child.Dir = "/"
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	input, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	})
	return child.Process.Pid
}

func wantIDs(t *testing.T, c *broker.Client, pid int, want ...spiffeid.ID) {
	t.Helper()
	grant, err := c.Attest(t.Context(), pid)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(grant.IDs, want) {
		t.Errorf("process %d is %s, want %s", pid, grant.IDs, want)
	}
	if (len(want) > 0) != time.Now().Before(grant.Expires) {
		t.Errorf("the grant expires at %s", grant.Expires)
	}
}

func wantUnavailable(t *testing.T, c *broker.Client, pid int, part string) {
	t.Helper()
	grant, err := c.Attest(t.Context(), pid)
	if !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), part) || len(grant.IDs) != 0 {
		t.Errorf("got %s, %v, want an error with %q", grant.IDs, err, part)
	}
}

// renewable is an identity that can be replaced.
type renewable struct {
	x509bundle.Source
	mu   sync.Mutex
	svid *x509svid.SVID
}

func (r *renewable) GetX509SVID() (*x509svid.SVID, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.svid, nil
}

func (r *renewable) renew(t *testing.T, domain *devdomain.Server) *x509svid.SVID {
	t.Helper()
	svid, err := domain.Issue(devdomain.Leaf{ID: agentID})
	if err != nil {
		t.Fatal(err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.svid = svid
	return svid
}

func openFixed(t *testing.T, domain *devdomain.Server) broker.Source {
	t.Helper()
	return fixedSource(t, domain, agentID)
}
