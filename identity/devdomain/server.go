// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/secret"
)

// What a zero field of Config stands for.
const (
	DefaultTrustDomain  = "dev.keyhole.test"
	DefaultSVIDLifetime = time.Hour
	DefaultJWTLifetime  = 5 * time.Minute
)

// The sockets in Config.Dir.
const (
	workloadSocket = "workload.sock" // 0666: every process may ask who it is
	brokerSocket   = "broker.sock"   // 0600
)

// Config describes a trust domain.
type Config struct {
	// Dir is the folder for the two sockets. It is created 0755 if it is not
	// there. A socket's path may have at most 107 bytes.
	Dir string

	// TrustDomain. Zero: dev.keyhole.test.
	TrustDomain spiffeid.TrustDomain

	// Self is the ID of the process that runs the server, whatever the rules
	// say. Zero: that process is like any other.
	Self spiffeid.ID

	// BrokerID is the Broker API server's own ID. Zero:
	// spiffe://<trust domain>/spire/agent/dev.
	BrokerID spiffeid.ID

	// BrokerCallers may use the Broker API. nil: Self alone.
	BrokerCallers []spiffeid.ID

	// Rules tell workloads apart. SetRules replaces them.
	Rules []Rule

	// SVIDLifetime is that of X.509-SVIDs; they are renewed when two fifths of
	// it have passed. Zero: an hour. At least a second.
	SVIDLifetime time.Duration

	// JWTLifetime is that of JWT-SVIDs. Zero: 5 minutes. At least a second.
	JWTLifetime time.Duration

	// Logger. nil: nothing is logged.
	Logger *slog.Logger

	// Now is the clock in certificates and tokens. nil: the system's.
	Now func() time.Time
}

// API names one of the two servers.
type API string

// The servers.
const (
	WorkloadAPI API = "workload"
	BrokerAPI   API = "broker"
)

// Server is a running trust domain. Its methods may be called by any number of
// goroutines.
type Server struct {
	config   Config // complete: no zero field has a meaning any more
	workload *endpoint
	broker   *endpoint

	mu      sync.Mutex
	state   *state
	changed chan struct{} // closed when state is replaced
	fault   Fault
}

// state is all that answers depend on. It is never modified, only replaced.
type state struct {
	authority *authority
	rules     []Rule
	federated []*spiffebundle.Bundle
}

// New starts a trust domain with a new authority. Both sockets accept
// connections when it returns.
//
// Errors: secret.ErrInvalid for a configuration that makes no sense,
// secret.ErrInUse when another server has a socket.
func New(config Config) (*Server, error) {
	config, err := complete(config)
	if err != nil {
		return nil, err
	}
	if err := checkRules(config.Rules, config.TrustDomain); err != nil {
		return nil, err
	}
	made, err := newAuthority(config.TrustDomain, config.Now())
	if err != nil {
		return nil, err
	}
	s := &Server{
		config:  config,
		state:   &state{authority: made, rules: slices.Clone(config.Rules)},
		changed: make(chan struct{}),
	}
	if err := os.Mkdir(config.Dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) { //nolint:gosec // every process must reach the Workload API
		return nil, fmt.Errorf("creating the folder of the development trust domain: %w", err)
	}
	s.workload = &endpoint{path: filepath.Join(config.Dir, workloadSocket), mode: 0o666, build: s.newWorkloadServer}
	s.broker = &endpoint{path: filepath.Join(config.Dir, brokerSocket), mode: 0o600, build: s.newBrokerServer}
	for _, each := range []*endpoint{s.workload, s.broker} {
		if err := each.start(); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	config.Logger.Warn("DEVELOPMENT TRUST DOMAIN: identities are handed out by user and executable, keys live in memory; never use it for real secrets",
		"trust_domain", config.TrustDomain.Name(), "workload_api", s.WorkloadAddress(), "broker_api", s.BrokerAddress())
	return s, nil
}

func complete(c Config) (Config, error) {
	if c.Dir == "" {
		return c, fmt.Errorf("%w development trust domain: no folder for its sockets", secret.ErrInvalid)
	}
	absolute, err := filepath.Abs(c.Dir)
	if err != nil {
		return c, fmt.Errorf("finding the folder of the development trust domain: %w", err)
	}
	c.Dir = absolute
	if c.TrustDomain.IsZero() {
		c.TrustDomain = spiffeid.RequireTrustDomainFromString(DefaultTrustDomain)
	}
	if c.BrokerID.IsZero() {
		c.BrokerID = spiffeid.RequireFromSegments(c.TrustDomain, "spire", "agent", "dev")
	}
	if c.BrokerCallers == nil && !c.Self.IsZero() {
		c.BrokerCallers = []spiffeid.ID{c.Self}
	}
	for _, id := range []spiffeid.ID{c.Self, c.BrokerID} {
		if !id.IsZero() && !id.MemberOf(c.TrustDomain) {
			return c, fmt.Errorf("%w development trust domain: %s is not of %q", secret.ErrInvalid, id, c.TrustDomain.Name())
		}
	}
	for name, lifetime := range map[string]*time.Duration{"SVID": &c.SVIDLifetime, "JWT": &c.JWTLifetime} {
		if *lifetime != 0 && *lifetime < time.Second {
			return c, fmt.Errorf("%w development trust domain: a %s lifetime of %s is below a second", secret.ErrInvalid, name, *lifetime)
		}
	}
	if c.SVIDLifetime == 0 {
		c.SVIDLifetime = DefaultSVIDLifetime
	}
	if c.JWTLifetime == 0 {
		c.JWTLifetime = DefaultJWTLifetime
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now // the system's clock is the default
	}
	return c, nil
}

// Close ends all streams, closes both sockets and waits for everything.
func (s *Server) Close() error {
	return errors.Join(s.workload.stop(), s.broker.stop())
}

// Stop makes one of the servers unreachable, as if it had crashed: its socket
// disappears and its connections break. It waits for that. Stopping a stopped
// server does nothing.
func (s *Server) Stop(api API) error { return s.endpoint(api).stop() }

// Start makes a stopped server reachable again, with the same authority and
// rules. Starting a running one does nothing.
func (s *Server) Start(api API) error { return s.endpoint(api).start() }

func (s *Server) endpoint(api API) *endpoint {
	if api == BrokerAPI {
		return s.broker
	}
	return s.workload
}

// WorkloadAddress is for SPIFFE_ENDPOINT_SOCKET: "unix:///…/workload.sock".
func (s *Server) WorkloadAddress() string { return s.workload.address() }

// BrokerAddress is "unix:///…/broker.sock".
func (s *Server) BrokerAddress() string { return s.broker.address() }

// TrustDomain returns the name of the trust domain.
func (s *Server) TrustDomain() spiffeid.TrustDomain { return s.config.TrustDomain }

// SetRules replaces the rules and tells all streams. The error is
// secret.ErrInvalid, and the rules stay as they were.
func (s *Server) SetRules(rules []Rule) error {
	if err := checkRules(rules, s.config.TrustDomain); err != nil {
		return err
	}
	s.update(func(next *state) { next.rules = slices.Clone(rules) })
	return nil
}

// SetFederated replaces the foreign bundles that workloads are given beside our
// own, and tells all streams.
func (s *Server) SetFederated(bundles ...*spiffebundle.Bundle) {
	foreign := make([]*spiffebundle.Bundle, len(bundles))
	for i, bundle := range bundles {
		foreign[i] = bundle.Clone()
	}
	s.update(func(next *state) { next.federated = foreign })
}

// RotateSVIDs makes all streams send new SVIDs now.
func (s *Server) RotateSVIDs() { s.update(func(*state) {}) }

// RotateAuthorities makes new X.509 and JWT authorities, and SVIDs by them. The
// old ones stay in the bundle, so that their SVIDs remain valid.
func (s *Server) RotateAuthorities() error {
	fresh, err := newAuthority(s.config.TrustDomain, s.config.Now())
	if err != nil {
		return err
	}
	s.update(func(next *state) { next.authority = fresh.after(next.authority) })
	return nil
}

// DropOldAuthorities takes all authorities but the current ones out of the
// bundle: SVIDs from before the last RotateAuthorities stop being valid.
func (s *Server) DropOldAuthorities() {
	s.update(func(next *state) { next.authority = next.authority.alone() })
}

// Bundle returns a copy of the trust domain's bundle.
func (s *Server) Bundle() *spiffebundle.Bundle {
	now, _ := s.current()
	return now.authority.bundle.Clone()
}

// GetX509BundleForTrustDomain implements x509bundle.Source for our own trust
// domain, which is the only one whose SVIDs the Broker API accepts.
func (s *Server) GetX509BundleForTrustDomain(domain spiffeid.TrustDomain) (*x509bundle.Bundle, error) {
	now, _ := s.current()
	return now.authority.bundle.GetX509BundleForTrustDomain(domain)
}

// current returns the state, and a channel that is closed when it is replaced.
func (s *Server) current() (*state, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state, s.changed
}

func (s *Server) update(change func(*state)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := *s.state
	change(&next)
	s.state = &next
	close(s.changed)
	s.changed = make(chan struct{})
}
