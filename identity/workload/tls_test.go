// SPDX-License-Identifier: Apache-2.0

package workload_test

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
)

var twinDomain = spiffeid.RequireTrustDomainFromString("twin.test")

func local(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://dev.keyhole.test" + path)
}

func issue(t *testing.T, domain *devdomain.Server, leaf devdomain.Leaf) *x509svid.SVID {
	t.Helper()
	svid, err := domain.Issue(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// client is a configuration that offers svid and believes bundles.
func client(svid *x509svid.SVID, bundles x509bundle.Source) *tls.Config {
	return tlsconfig.MTLSClientConfig(svid, bundles, tlsconfig.AuthorizeAny())
}

// handshake connects a client to the source over a Unix socket and returns what
// became of it on the server's side.
func handshake(t *testing.T, s *workload.Source, with *tls.Config) (tls.ConnectionState, error) {
	t.Helper()
	here, there := socketPair(t)
	theirs := tls.Client(there, with)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// The result is the server's to tell; reading takes session tickets in.
		_, _ = io.Copy(io.Discard, theirs)
		_ = there.Close()
	}()
	ours := tls.Server(here, s.ServerTLS())
	err := ours.HandshakeContext(t.Context())
	state := ours.ConnectionState()
	_ = ours.Close()
	<-done
	return state, err
}

func socketPair(t *testing.T) (here, there net.Conn) {
	t.Helper()
	listener, err := net.Listen("unix", t.TempDir()+"/s")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	if there, err = net.Dial("unix", listener.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if here, err = listener.Accept(); err != nil {
		t.Fatal(err)
	}
	return here, there
}

func TestAHandshakeBeforeTheFirstSVIDFailsClearly(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	if err := domain.Stop(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	s := open(t, workload.Config{Address: domain.WorkloadAddress()})
	_, err := handshake(t, s, client(issue(t, domain, devdomain.Leaf{ID: local("/a")}), domain))
	if !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), "waiting for an SVID") {
		t.Errorf("the handshake: %v", err)
	}
}

func TestOnlyAFaultlessSVIDOfAnAcceptedTrustDomainConnects(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	twin := startDomain(t, devdomain.Config{TrustDomain: twinDomain})
	stranger := startDomain(t, devdomain.Config{}) // another authority of the same name
	domain.SetFederated(twin.Bundle())
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	twinID := spiffeid.RequireFromPath(twinDomain, "/a")
	past := time.Now().Add(-time.Minute)
	for name, test := range map[string]struct {
		svid *x509svid.SVID
		want string // in the error; "" for none
	}{
		"good":                  {issue(t, domain, devdomain.Leaf{ID: local("/a")}), ""},
		"root path":             {issue(t, domain, devdomain.Leaf{ID: domain.TrustDomain().ID()}), "has no path"},
		"no digitalSignature":   {issue(t, domain, devdomain.Leaf{ID: local("/a"), KeyUsage: x509.KeyUsageKeyAgreement}), "digitalSignature"},
		"signs certificates":    {issue(t, domain, devdomain.Leaf{ID: local("/a"), KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign}), "KeyCertSign"},
		"expired":               {issue(t, domain, devdomain.Leaf{ID: local("/a"), NotBefore: past.Add(-time.Hour), NotAfter: past}), "expired"},
		"not yet valid":         {issue(t, domain, devdomain.Leaf{ID: local("/a"), NotBefore: time.Now().Add(time.Hour), NotAfter: time.Now().Add(2 * time.Hour)}), "not yet valid"},
		"federated, but not us": {issue(t, twin, devdomain.Leaf{ID: twinID}), `the trust domain "twin.test" is neither our own`},
		"another authority":     {issue(t, stranger, devdomain.Leaf{ID: local("/a")}), "unknown authority"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := handshake(t, s, client(test.svid, domain))
			if !matches(err, test.want) {
				t.Errorf("the handshake: %v", err)
			}
			id, err := s.Verify(test.svid.Certificates)
			if !matches(err, test.want) || (err != nil && !errors.Is(err, secret.ErrUnauthenticated)) {
				t.Errorf("Verify: %v", err)
			}
			if (err == nil) != (id == test.svid.ID) {
				t.Errorf("Verify: %s", id)
			}
		})
	}
	if _, err := s.Verify(nil); !errors.Is(err, secret.ErrUnauthenticated) {
		t.Errorf("no certificate: %v", err)
	}
}

func matches(err error, want string) bool {
	if want == "" {
		return err == nil
	}
	return err != nil && strings.Contains(err.Error(), want)
}

func TestAFederatedTwinStaysDistinguishable(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	twin := startDomain(t, devdomain.Config{TrustDomain: twinDomain})
	domain.SetFederated(twin.Bundle())
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress(), Federated: []spiffeid.TrustDomain{twinDomain}})
	for _, of := range []*devdomain.Server{domain, twin} {
		want := spiffeid.RequireFromPath(of.TrustDomain(), "/db")
		state, err := handshake(t, s, client(issue(t, of, devdomain.Leaf{ID: want}), domain))
		if err != nil {
			t.Fatal(err)
		}
		if id, err := s.Verify(state.PeerCertificates); err != nil || id != want {
			t.Errorf("%s is taken for %s, %v", want, id, err)
		}
	}
	// What one domain signs in the name of the other is nobody's.
	forged := issue(t, twin, devdomain.Leaf{ID: local("/db")})
	if id, err := s.Verify(forged.Certificates); !errors.Is(err, secret.ErrUnauthenticated) {
		t.Errorf("the twin's forgery is %s, %v", id, err)
	}
	// Without its bundle a trust domain is not accepted any more.
	known := issue(t, twin, devdomain.Leaf{ID: spiffeid.RequireFromPath(twinDomain, "/db")})
	if _, err := s.Verify(known.Certificates); err != nil {
		t.Fatal(err)
	}
	domain.SetFederated()
	until(t, s, "the end of the federation", func() bool {
		_, err := s.Verify(known.Certificates)
		return errors.Is(err, secret.ErrUnauthenticated)
	})
}

func TestASessionIsNeverResumed(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	with := client(issue(t, domain, devdomain.Leaf{ID: local("/a")}), domain)
	with.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	with.ServerName = "keyhole"
	for i := range 3 {
		state, err := handshake(t, s, with)
		if err != nil {
			t.Fatal(err)
		}
		if state.DidResume {
			t.Errorf("connection %d resumed a session", i)
		}
	}
	if _, found := with.ClientSessionCache.Get("keyhole"); found {
		t.Error("the client was given a session to resume")
	}
}

func TestTLS12IsRefused(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	with := client(issue(t, domain, devdomain.Leaf{ID: local("/a")}), domain)
	with.MaxVersion = tls.VersionTLS12
	if _, err := handshake(t, s, with); err == nil {
		t.Error("a TLS 1.2 client connected")
	}
}

func TestAClientWithoutACertificateIsRefused(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	if _, err := handshake(t, s, tlsconfig.TLSClientConfig(domain, tlsconfig.AuthorizeAny())); err == nil {
		t.Error("a client without a certificate connected")
	}
}

func TestVerifyNoticesExpiryAndADroppedAuthority(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	var moved clock
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress(), Now: moved.now})
	short := issue(t, domain, devdomain.Leaf{ID: local("/a"), NotAfter: time.Now().Add(10 * time.Minute)})
	for range 2 { // the second time from memory
		if id, err := s.Verify(short.Certificates); err != nil || id != local("/a") {
			t.Fatalf("%s, %v", id, err)
		}
	}
	moved.forward(11 * time.Minute)
	if _, err := s.Verify(short.Certificates); !errors.Is(err, secret.ErrUnauthenticated) || !strings.Contains(err.Error(), "expired") {
		t.Errorf("after the leaf's end: %v", err)
	}
	moved.forward(-20 * time.Minute)
	if _, err := s.Verify(short.Certificates); !errors.Is(err, secret.ErrUnauthenticated) {
		t.Errorf("before the leaf's beginning: %v", err)
	}
	moved.forward(9 * time.Minute)
	if _, err := s.Verify(short.Certificates); err != nil {
		t.Fatal(err)
	}

	if err := domain.RotateAuthorities(); err != nil {
		t.Fatal(err)
	}
	domain.DropOldAuthorities()
	until(t, s, "the new bundle", func() bool {
		_, err := s.Verify(short.Certificates)
		return errors.Is(err, secret.ErrUnauthenticated)
	})
	if _, err := s.Verify(issue(t, domain, devdomain.Leaf{ID: local("/a")}).Certificates); err != nil {
		t.Errorf("an SVID of the new authority: %v", err)
	}
}

func TestVerifyingAgainAllocatesNothing(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	peer := issue(t, domain, devdomain.Leaf{ID: local("/a")})
	verify := func() {
		if _, err := s.Verify(peer.Certificates); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, verify); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestAClientPinsItsServer(t *testing.T) {
	domain := startDomain(t, devdomain.Config{})
	s := openReady(t, workload.Config{Address: domain.WorkloadAddress()})
	own := issue(t, domain, devdomain.Leaf{ID: local("/a")})
	for want, ok := range map[spiffeid.ID]bool{agentID: true, local("/key"): false, local("/keyhole/x"): false} {
		here, there := socketPair(t)
		served := make(chan error, 1)
		go func() {
			server := tls.Server(here, s.ServerTLS())
			served <- server.HandshakeContext(t.Context())
			_ = here.Close()
		}()
		err := tls.Client(there, workload.ClientTLS(own, domain, tlsconfig.AuthorizeID(want))).HandshakeContext(t.Context())
		_ = there.Close()
		if err := <-served; err != nil {
			t.Log("the server:", err) // the client decides here
		}
		if (err == nil) != ok {
			t.Errorf("a server that should be %s: %v", want, err)
		}
	}
}

func BenchmarkVerifyAgain(b *testing.B) {
	domain, err := devdomain.New(devdomain.Config{Dir: b.TempDir(), Self: agentID})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = domain.Close() }()
	s, err := workload.Open(b.Context(), workload.Config{Address: domain.WorkloadAddress()})
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = s.Close() }()
	<-s.Ready()
	peer, err := domain.Issue(devdomain.Leaf{ID: local("/a")})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if _, err := s.Verify(peer.Certificates); err != nil {
			b.Fatal(err)
		}
	}
}
