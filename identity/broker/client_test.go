// SPDX-License-Identifier: Apache-2.0

package broker_test

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/identity/broker"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestAProcessHasTheIDsOfItsUserOrRules(t *testing.T) {
	domain := startDomain(t, devdomain.Config{Rules: []devdomain.Rule{
		{IDs: []spiffeid.ID{dev("/web")}, UID: new(uint32(1002))},
		{IDs: []spiffeid.ID{dev("/a"), dev("/b")}, UID: new(uint32(1003))},
		{UID: new(uint32(1004))},
		{IDs: []spiffeid.ID{dev("/c")}, UID: new(uint32(1005))},
		{IDs: []spiffeid.ID{dev("/d")}, GID: new(uint32(1005))},
	}})
	c := connect(t, domain)
	wantIDs(t, c, runAs(t, 1001), dev("/uid/1001"))
	wantIDs(t, c, runAs(t, 1002), dev("/web"))
	wantIDs(t, c, runAs(t, 1003), dev("/a"), dev("/b"))
	wantIDs(t, c, runAs(t, 1004)) // entitled to none
	wantIDs(t, c, runAs(t, 1005)) // rules disagree
	wantIDs(t, c, os.Getpid(), agentID)
	wantIDs(t, c, 1<<22+1) // above the largest pid_max
}

func TestAChangedOrRemovedEntryIsSeenAtOnce(t *testing.T) {
	rule := devdomain.Rule{IDs: []spiffeid.ID{dev("/web")}, UID: new(uint32(1001))}
	domain := startDomain(t, devdomain.Config{Rules: []devdomain.Rule{rule}})
	c := connect(t, domain)
	pid := runAs(t, 1001)
	wantIDs(t, c, pid, dev("/web"))
	rule.IDs = nil
	if err := domain.SetRules([]devdomain.Rule{rule}); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, c, pid)
	if err := domain.SetRules(nil); err != nil {
		t.Fatal(err)
	}
	wantIDs(t, c, pid, dev("/uid/1001"))
}

func TestAnIDWithoutAPathDiscardsTheAnswer(t *testing.T) {
	domain := startDomain(t, devdomain.Config{Rules: []devdomain.Rule{
		{IDs: []spiffeid.ID{dev("/web"), agentID.TrustDomain().ID()}, UID: new(uint32(1001))},
	}})
	wantUnavailable(t, connect(t, domain), runAs(t, 1001), "has no path")
}

func TestNoEntitlementIsNoErrorAndOtherRefusalsAre(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	c := connect(t, domain)
	for _, code := range []codes.Code{codes.PermissionDenied, codes.NotFound} {
		domain.SetFault(func(context.Context, string) error { return status.Error(code, "no") })
		wantIDs(t, c, os.Getpid())
	}
	for _, code := range []codes.Code{codes.Unavailable, codes.Internal, codes.Unauthenticated, codes.InvalidArgument, codes.Unimplemented, codes.OK} {
		domain.SetFault(func(context.Context, string) error {
			if code == codes.OK {
				return errors.New("no status at all")
			}
			return status.Error(code, "no")
		})
		wantUnavailable(t, c, os.Getpid(), "no")
	}
	domain.SetFault(nil)
	wantIDs(t, c, os.Getpid(), agentID)
}

func TestASlowBrokerIsNotWaitedFor(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	domain.SetFault(func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return ctx.Err()
	})
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: openFixed(t, domain), Timeout: 50 * time.Millisecond})
	wantUnavailable(t, c, os.Getpid(), "asking the broker")
}

func TestABrokerThatGoesAwayIsFoundAgain(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	c := connect(t, domain)
	for range 2 {
		wantIDs(t, c, os.Getpid(), agentID)
		if err := domain.Stop(devdomain.BrokerAPI); err != nil {
			t.Fatal(err)
		}
		wantUnavailable(t, c, os.Getpid(), "Unavailable")
		if err := domain.Start(devdomain.BrokerAPI); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		if err := c.CheckSelf(ctx); err != nil {
			t.Error(err)
		}
		cancel()
	}
	wantIDs(t, c, os.Getpid(), agentID)
}

func TestABrokerIsPinnedByWholeSegments(t *testing.T) {
	for server, ok := range map[string]bool{
		"/spire/agent": true, "/spire/agent/x509pop/1": true,
		"/spire/agentx/dev": false, "/spire": false, "/uid/0": false, "/x/spire/agent": false,
	} {
		domain := startDomain(t, devdomain.Config{BrokerID: dev(server)})
		c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: openFixed(t, domain)})
		if ok {
			wantIDs(t, c, os.Getpid(), agentID)
		} else {
			wantUnavailable(t, c, os.Getpid(), "unexpected ID")
		}
	}
}

func TestATwinsBrokerIsNotOurs(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	twinDomain := spiffeid.RequireTrustDomainFromString("twin.test")
	twin := startDomain(t, devdomain.Config{TrustDomain: twinDomain, Self: spiffeid.RequireFromPath(twinDomain, "/keyhole")})
	// We believe the twin's bundle, and it has the same path, and even so.
	c := newClient(t, broker.Config{Address: twin.BrokerAddress(), Source: fixedSource(t, twin, spiffeid.RequireFromPath(twinDomain, "/keyhole"))})
	wantUnavailable(t, c, os.Getpid(), "unexpected ID")
	// Without its bundle, not even that far.
	c = newClient(t, broker.Config{Address: twin.BrokerAddress(), Source: openFixed(t, domain)})
	wantUnavailable(t, c, os.Getpid(), "could not get X509 bundle")
}

func TestAnAnswerOfAnotherTrustDomainIsDiscarded(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	c := newClient(t, broker.Config{
		Address: domain.BrokerAddress(), Source: openFixed(t, domain),
		TrustDomain: spiffeid.RequireTrustDomainFromString("twin.test"), Server: dev("/spire/agent"),
	})
	wantUnavailable(t, c, os.Getpid(), `is not of the trust domain "twin.test"`)
}

func TestWhoMayNotAskIsUnavailable(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: fixedSource(t, domain, dev("/not-keyhole"))})
	wantUnavailable(t, c, os.Getpid(), "Unavailable")
}

func TestCheckSelfNoticesAnotherProcessUnderOurNumber(t *testing.T) {
	other := dev("/other")
	domain := startDomain(t, devdomain.Config{BrokerCallers: []spiffeid.ID{agentID, other}})
	if err := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: openFixed(t, domain)}).CheckSelf(t.Context()); err != nil {
		t.Error(err)
	}
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: fixedSource(t, domain, other)})
	err := c.CheckSelf(t.Context())
	if !errors.Is(err, secret.ErrDenied) || !strings.Contains(err.Error(), "pid namespace") || !strings.Contains(err.Error(), agentID.String()) {
		t.Errorf("got %v", err)
	}
	domain.SetFault(func(context.Context, string) error { return status.Error(codes.PermissionDenied, "no") })
	if err := c.CheckSelf(t.Context()); !errors.Is(err, secret.ErrDenied) || !strings.Contains(err.Error(), "no SPIFFE ID") {
		t.Errorf("got %v", err)
	}
}

func TestCheckSelfWaitsForTheBrokerUntilItsContextEnds(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	if err := domain.Stop(devdomain.BrokerAPI); err != nil {
		t.Fatal(err)
	}
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: openFixed(t, domain)})
	wantUnavailable(t, c, os.Getpid(), "Unavailable")
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if err := c.CheckSelf(ctx); !errors.Is(err, secret.ErrUnavailable) || ctx.Err() == nil {
		t.Errorf("got %v, %v", err, ctx.Err())
	}
}

func TestBeforeOurFirstSVIDNothingIsAsked(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	if err := domain.Stop(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	source, err := workload.Open(t.Context(), workload.Config{Address: domain.WorkloadAddress()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = source.Close() }()
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: source})
	wantUnavailable(t, c, os.Getpid(), "waiting for an SVID")
	if err := domain.Start(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	select {
	case <-source.Ready():
	case <-time.After(patience):
		t.Fatal(source.Health())
	}
	wantIDs(t, c, os.Getpid(), agentID)
}

func TestRotationsAreFollowed(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	source := openSource(t, domain)
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: source})
	wantIDs(t, c, os.Getpid(), agentID)
	before, err := source.GetX509SVID()
	if err != nil {
		t.Fatal(err)
	}
	if err := domain.RotateAuthorities(); err != nil {
		t.Fatal(err)
	}
	domain.DropOldAuthorities()
	for {
		changed := source.Changed()
		bundle, err := source.GetX509BundleForTrustDomain(domain.TrustDomain())
		if now, failure := source.GetX509SVID(); err == nil && failure == nil && now != before && bundle.Equal(domain.Bundle().X509Bundle()) {
			break
		}
		select {
		case <-changed:
		case <-time.After(patience):
			t.Fatal("no rotation")
		}
	}
	wantIDs(t, c, os.Getpid(), agentID)
}

func TestARenewedSVIDMakesANewConnection(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	seen := make(chan *x509.Certificate, 1)
	domain.SetFault(func(ctx context.Context, _ string) error {
		caller, _ := peer.FromContext(ctx)
		seen <- caller.AuthInfo.(credentials.TLSInfo).State.PeerCertificates[0]
		return nil
	})
	source := &renewable{Source: domain}
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: source})
	for range 2 {
		svid := source.renew(t, domain)
		wantIDs(t, c, os.Getpid(), agentID)
		if offered := <-seen; !offered.Equal(svid.Certificates[0]) {
			t.Errorf("the broker was offered SVID %d, want %d", offered.SerialNumber, svid.Certificates[0].SerialNumber)
		}
	}
}

func TestManyAskAtOnceWhileTheSVIDRotates(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	c := connect(t, domain)
	var asking sync.WaitGroup
	for range 8 {
		asking.Go(func() {
			for range 20 {
				if grant, err := c.Attest(t.Context(), os.Getpid()); err != nil || !slices.Equal(grant.IDs, []spiffeid.ID{agentID}) {
					t.Errorf("%s, %v", grant.IDs, err)
				}
			}
		})
	}
	for range 10 {
		domain.RotateSVIDs()
	}
	asking.Wait()
}

func TestCloseEndsAQuestionUnderWay(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	asked := make(chan struct{})
	domain.SetFault(func(ctx context.Context, _ string) error {
		close(asked)
		<-ctx.Done()
		return ctx.Err()
	})
	c := newClient(t, broker.Config{Address: domain.BrokerAddress(), Source: openFixed(t, domain), Timeout: time.Hour})
	ended := make(chan error, 1)
	go func() {
		_, err := c.Attest(t.Context(), os.Getpid())
		ended <- err
	}()
	<-asked
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	wantUnavailable(t, c, os.Getpid(), "stopping")
}

func TestAConfigurationThatMakesNoSenseIsRefused(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	good := broker.Config{Address: domain.BrokerAddress(), Source: openFixed(t, domain), TrustDomain: agentID.TrustDomain()}
	for name, change := range map[string]func(*broker.Config){
		"no address":         func(c *broker.Config) { c.Address = "" },
		"a path":             func(c *broker.Config) { c.Address = "/run/broker.sock" },
		"a relative path":    func(c *broker.Config) { c.Address = "unix://broker.sock" },
		"TCP":                func(c *broker.Config) { c.Address = "tcp://127.0.0.1:1" },
		"no source":          func(c *broker.Config) { c.Source = nil },
		"no trust domain":    func(c *broker.Config) { c.TrustDomain = spiffeid.TrustDomain{} },
		"a root path server": func(c *broker.Config) { c.Server = agentID.TrustDomain().ID() },
		"a negative timeout": func(c *broker.Config) { c.Timeout = -1 },
	} {
		config := good
		change(&config)
		if _, err := broker.New(config); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	c := newClient(t, good)
	for _, pid := range []int{0, -1, 1 << 31} {
		wantUnavailable(t, c, pid, "is not a process id")
	}
}
