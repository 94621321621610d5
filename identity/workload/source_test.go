// SPDX-License-Identifier: Apache-2.0

package workload_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var agentID = spiffeid.RequireFromString("spiffe://dev.keyhole.test/keyhole")

// clock is the system's, moved.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) forward(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += by
}

func startDomain(t *testing.T, config devdomain.Config) *devdomain.Server {
	t.Helper()
	config.Dir = t.TempDir()
	if config.TrustDomain.IsZero() {
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

func open(t *testing.T, config workload.Config) *workload.Source {
	t.Helper()
	s, err := workload.Open(t.Context(), config)
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

// openReady opens a source and waits for its SVID.
func openReady(t *testing.T, config workload.Config) *workload.Source {
	t.Helper()
	s := open(t, config)
	until(t, s, "the first SVID", func() bool { return s.Health() == nil })
	return s
}

// until waits until something is so, looking whenever the source changes.
func until(t *testing.T, s *workload.Source, what string, so func() bool) {
	t.Helper()
	limit := time.After(time.Minute)
	for {
		changed := s.Changed()
		if so() {
			return
		}
		select {
		case <-changed:
		case <-limit:
			t.Fatalf("a minute without %s: %v", what, s.Health())
		}
	}
}

func ready(s *workload.Source) bool {
	select {
	case <-s.Ready():
		return true
	default:
		return false
	}
}

func TestItStartsWithoutAWorkloadAPIAndFindsItLater(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	if err := domain.Stop(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	s := open(t, workload.Config{Address: domain.WorkloadAddress()})
	until(t, s, "an attempt", func() bool { return strings.Contains(s.Health().Error(), "no such file") })
	if err := s.Health(); !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), "waiting for an SVID") || !strings.Contains(err.Error(), domain.WorkloadAddress()) {
		t.Errorf("health: %v", err)
	}
	if ready(s) || !s.ID().IsZero() {
		t.Errorf("it claims to be %s", s.ID())
	}
	if _, err := s.GetX509SVID(); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("the SVID: %v", err)
	}
	if err := domain.Start(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	until(t, s, "an SVID", func() bool { return s.Health() == nil })
	if !ready(s) || s.ID() != agentID {
		t.Errorf("it is %s", s.ID())
	}
}

func TestAnOutageKeepsTheLastSVIDUntilItExpires(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	var moved clock
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress(), Now: moved.now})
	if err := domain.Stop(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	until(t, s, "the outage", func() bool { return s.Health() != nil })
	if err := s.Health(); !strings.Contains(err.Error(), "the SVID is valid until") {
		t.Errorf("health: %v", err)
	}
	if svid, err := s.GetX509SVID(); err != nil || svid.ID != agentID {
		t.Errorf("inside its lifetime: %v, %v", svid, err)
	}
	if _, err := s.GetX509BundleForTrustDomain(domain.TrustDomain()); err != nil {
		t.Error(err)
	}
	moved.forward(devdomain.DefaultSVIDLifetime + time.Minute)
	if _, err := s.GetX509SVID(); !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), "expired at") {
		t.Errorf("after its lifetime: %v", err)
	}
	moved.forward(-devdomain.DefaultSVIDLifetime)
	if err := domain.Start(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	until(t, s, "the recovery", func() bool { return s.Health() == nil })
}

func TestItRecoversFromEveryAnswerOfTheWorkloadAPI(t *testing.T) {
	for _, code := range []codes.Code{codes.PermissionDenied, codes.Unavailable, codes.Internal, codes.InvalidArgument, codes.Canceled} {
		t.Run(code.String(), func(t *testing.T) {
			t.Parallel()
			domain := startDomain(t, devdomain.Config{})
			domain.SetFault(func(context.Context, string) error { return status.Error(code, "not now") })
			s := open(t, workload.Config{Address: domain.WorkloadAddress()})
			until(t, s, "the fault", func() bool { return strings.Contains(s.Health().Error(), "not now") })
			domain.SetFault(nil)
			until(t, s, "the recovery", func() bool { return s.Health() == nil })
		})
	}
}

func TestItFollowsRotations(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	before, err := s.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.GetX509SVID(); err != nil || again != before {
		t.Errorf("another SVID without an update: %v", err)
	}
	if err := domain.RotateAuthorities(); err != nil {
		t.Fatal(err)
	}
	until(t, s, "a new SVID", func() bool {
		now, err := s.GetX509SVID()
		return err == nil && now != before
	})
	bundle, err := s.GetX509BundleForTrustDomain(domain.TrustDomain())
	if err != nil || len(bundle.X509Authorities()) != 2 {
		t.Errorf("bundle: %v, %v", bundle, err)
	}
}

func TestItNeedsAnAddress(t *testing.T) {
	t.Setenv(workloadapi.SocketEnv, "")
	for _, address := range []string{"", "/run/agent.sock", "http://localhost", "unix://relative"} {
		s, err := workload.Open(t.Context(), workload.Config{Address: address})
		if !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%q: %v", address, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
	domain := startDomain(t, devdomain.Config{})
	t.Setenv(workloadapi.SocketEnv, domain.WorkloadAddress())
	openReady(t, workload.Config{})
}

func TestNothingIsVerifiedAfterClose(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	peer := issue(t, domain, devdomain.Leaf{ID: spiffeid.RequireFromString("spiffe://dev.keyhole.test/a")})
	if _, err := s.Verify(peer.Certificates); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Verify(peer.Certificates); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if !s.ID().IsZero() {
		t.Errorf("after Close it is %s", s.ID())
	}
}
