// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/keyhole-agent/keyhole/secret"
)

// Config says where the Workload API is and whom to accept.
type Config struct {
	// Address of the Workload API: "unix:///run/spire/agent.sock", or
	// "tcp://" with an IP address and a port. Empty: the environment variable
	// SPIFFE_ENDPOINT_SOCKET, as the standard has it.
	Address string

	// Federated names the trust domains whose workloads are accepted beside
	// those of our own. Their bundles come from the Workload API too.
	Federated []spiffeid.TrustDomain

	// Logger is told of SVIDs and outages. nil: nobody is.
	Logger *slog.Logger

	// Now is the clock that expiry is checked with. nil: the system's.
	Now func() time.Time
}

// Source is the agent's own identity. It may be used by any number of
// goroutines. It implements x509svid.Source and x509bundle.Source.
type Source struct {
	address   string
	federated []spiffeid.TrustDomain
	log       *slog.Logger
	now       func() time.Time

	client *workloadapi.Client
	cancel context.CancelFunc
	watch  sync.WaitGroup
	ready  chan struct{} // closed when the first SVID is there

	mu         sync.RWMutex
	svid       *x509svid.SVID // nil before the first
	bundles    *x509bundle.Set
	generation uint64        // grows whenever bundles change
	trouble    error         // why the Workload API does not answer; nil when it does
	changed    chan struct{} // closed when any of the above changes
	closed     bool

	verified cache
}

var (
	_ x509svid.Source   = (*Source)(nil)
	_ x509bundle.Source = (*Source)(nil)
)

// Open starts to watch the Workload API and returns at once, whether it is
// there or not. It tries again, with growing pauses of at most 5 seconds, until
// Close. The values of ctx are kept, its end is not.
//
// The error is secret.ErrInvalid for an address that is malformed or missing.
func Open(ctx context.Context, config Config) (*Source, error) {
	address, err := resolveAddress(config.Address)
	if err != nil {
		return nil, err
	}
	s := &Source{
		address:   address,
		federated: slices.Clone(config.Federated),
		log:       config.Logger,
		now:       config.Now,
		ready:     make(chan struct{}),
		changed:   make(chan struct{}),
		trouble:   errors.New("it has not answered yet"),
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.now == nil {
		s.now = time.Now // the system's clock is the default
	}
	ctx, s.cancel = context.WithCancel(context.WithoutCancel(ctx))
	s.client, err = workloadapi.New(ctx, clientOptions(address)...)
	if err != nil {
		s.cancel()
		return nil, fmt.Errorf("%w address of the Workload API %q: %w", secret.ErrInvalid, address, err)
	}
	s.watch.Go(func() { s.follow(ctx) })
	return s, nil
}

func resolveAddress(address string) (string, error) {
	if address == "" {
		var set bool
		if address, set = workloadapi.GetDefaultAddress(); !set || address == "" {
			return "", fmt.Errorf("%w: no address of the Workload API: set it in the configuration or in %s", secret.ErrInvalid, workloadapi.SocketEnv)
		}
	}
	if err := workloadapi.ValidateAddress(address); err != nil {
		return "", fmt.Errorf("%w address of the Workload API %q: %w", secret.ErrInvalid, address, err)
	}
	return address, nil
}

// Close stops watching and waits until that is done. Nothing is verified
// afterwards, and no handshake succeeds.
func (s *Source) Close() error {
	s.mu.Lock()
	first := !s.closed
	s.closed = true
	if first {
		s.svid, s.bundles, s.trouble = nil, nil, errors.New("the agent is stopping")
		s.changeLocked()
	}
	s.mu.Unlock()
	s.cancel()
	s.watch.Wait()
	if !first {
		return nil
	}
	if err := s.client.Close(); err != nil {
		return fmt.Errorf("closing the connection to the Workload API: %w", err)
	}
	return nil
}

// Ready is closed when the first SVID has arrived.
func (s *Source) Ready() <-chan struct{} { return s.ready }

// Changed returns a channel that is closed when the SVID, the bundles or Health
// change the next time. Ask for the channel first, and look after.
func (s *Source) Changed() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

func (s *Source) changeLocked() {
	close(s.changed)
	s.changed = make(chan struct{})
}

// ID returns the agent's own SPIFFE ID; the zero ID before the first SVID.
func (s *Source) ID() spiffeid.ID {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.svid == nil {
		return spiffeid.ID{}
	}
	return s.svid.ID
}

// Health is nil while the Workload API answers and the SVID is valid. Otherwise
// it is secret.ErrUnavailable and says what is missing and until when the last
// SVID serves.
func (s *Source) Health() error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.checkLocked(); err != nil {
		return err
	}
	if s.trouble != nil {
		return fmt.Errorf("%w: the Workload API at %s: %w; the SVID is valid until %s",
			secret.ErrUnavailable, s.address, s.trouble, s.svid.Certificates[0].NotAfter.Format(time.RFC3339))
	}
	return nil
}

// GetX509SVID returns the agent's SVID. The error is secret.ErrUnavailable
// before the first one arrived and after the last one expired. The answer is
// the same pointer until the Workload API sends another.
func (s *Source) GetX509SVID() (*x509svid.SVID, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if err := s.checkLocked(); err != nil {
		return nil, err
	}
	return s.svid, nil
}

// GetX509BundleForTrustDomain returns the bundle of a trust domain that is
// accepted: our own, or a configured one. The error is secret.ErrUnavailable
// without an SVID, and secret.ErrUnauthenticated for any other trust domain.
func (s *Source) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.bundleLocked(domain)
}

func (s *Source) bundleLocked(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	if err := s.checkLocked(); err != nil {
		return nil, err
	}
	if domain != s.svid.ID.TrustDomain() && !slices.Contains(s.federated, domain) {
		return nil, fmt.Errorf("%w: the trust domain %q is neither our own nor a federated one of the configuration", secret.ErrUnauthenticated, domain.Name())
	}
	bundle, found := s.bundles.Get(domain)
	if !found {
		return nil, fmt.Errorf("%w: the Workload API sent no bundle of the trust domain %q", secret.ErrUnauthenticated, domain.Name())
	}
	return bundle, nil
}

// checkLocked says why there is no SVID to use, or nil.
func (s *Source) checkLocked() error {
	if s.svid == nil {
		return fmt.Errorf("%w: waiting for an SVID from the Workload API at %s: %w", secret.ErrUnavailable, s.address, s.trouble)
	}
	if end := s.svid.Certificates[0].NotAfter; s.now().After(end) {
		reason := s.trouble
		if reason == nil {
			reason = errors.New("it sends no new one")
		}
		return fmt.Errorf("%w: the SVID expired at %s; the Workload API at %s: %w", secret.ErrUnavailable, end.Format(time.RFC3339), s.address, reason)
	}
	return nil
}

// update takes over what the Workload API sent. The first SVID is the default
// one (SPIFFE Workload API, section 5.3).
func (s *Source) update(received *workloadapi.X509Context) {
	svid := received.DefaultSVID()
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return
	}
	before, trouble := s.svid, s.trouble
	s.svid, s.trouble = svid, nil
	if s.bundles == nil || !sameBundles(s.bundles, received.Bundles) {
		s.bundles = received.Bundles
		s.generation++
	}
	s.changeLocked()
	s.mu.Unlock()

	leaf := svid.Certificates[0]
	attributes := []any{"spiffe_id", svid.ID.String(), "expires", leaf.NotAfter}
	switch {
	case before == nil:
		s.log.Info("received the agent's SVID", attributes...)
		close(s.ready)
	case before.ID != svid.ID:
		s.log.Warn("the Workload API gave the agent another SPIFFE ID; clients that pin the old one refuse it",
			append(attributes, "before", before.ID.String())...)
	case trouble != nil:
		s.log.Info("the Workload API is back", attributes...)
	case !slices.EqualFunc(before.Certificates, svid.Certificates, (*x509.Certificate).Equal):
		s.log.Debug("the agent's SVID was renewed", attributes...)
	}
}

// fail notes an outage. The last SVID stays.
func (s *Source) fail(err error) {
	s.mu.Lock()
	known := s.trouble != nil && s.trouble.Error() == err.Error()
	if !s.closed && !known {
		s.trouble = err
		s.changeLocked()
	}
	closed := s.closed
	s.mu.Unlock()
	if !known && !closed {
		s.log.Warn("the Workload API does not answer; trying again", "address", s.address, "error", err)
	}
}

func sameBundles(a, b *x509bundle.Set) bool {
	return slices.EqualFunc(a.Bundles(), b.Bundles(), (*x509bundle.Bundle).Equal)
}
