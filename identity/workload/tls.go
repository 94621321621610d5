// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/keyhole-agent/keyhole/secret"
)

// ServerTLS returns a configuration for a server that proves the agent's
// identity and demands an accepted SVID of every client: TLS 1.3, no resumed
// sessions. It follows rotations. NextProtos is left to the caller, who owns
// the result.
func (s *Source) ServerTLS() *tls.Config {
	config := tlsconfig.MTLSServerConfig(s, s, Strict(s.authorize))
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	return config
}

// ClientTLS returns a configuration for a client that proves itself with svid
// and talks only to servers that authorize accepts, with the checks of Strict:
// TLS 1.3, no resumed sessions.
func ClientTLS(svid x509svid.Source, bundles x509bundle.Source, authorize tlsconfig.Authorizer) *tls.Config {
	config := tlsconfig.MTLSClientConfig(svid, bundles, Strict(authorize))
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	return config
}

// Strict refuses what the X509-SVID standard says to refuse and go-spiffe's
// verifier accepts, and then asks next.
func Strict(next tlsconfig.Authorizer) tlsconfig.Authorizer {
	return func(id spiffeid.ID, chains [][]*x509.Certificate) error {
		if len(chains) == 0 || len(chains[0]) == 0 {
			return errors.New("there is no verified chain")
		}
		if err := checkLeaf(id, chains[0][0]); err != nil {
			return err
		}
		return next(id, chains)
	}
}

func checkLeaf(id spiffeid.ID, leaf *x509.Certificate) error {
	if id.Path() == "" {
		return fmt.Errorf("the SVID's SPIFFE ID %s has no path", id)
	}
	if leaf.KeyUsage&x509.KeyUsageDigitalSignature == 0 {
		return fmt.Errorf("the SVID of %s lacks the key usage digitalSignature", id)
	}
	return nil
}

// authorize holds the chain against our clock. Which trust domains are accepted
// was decided when the bundle was looked up.
func (s *Source) authorize(id spiffeid.ID, chains [][]*x509.Certificate) error {
	_, end := validity(chains)
	if s.now().After(end) {
		return fmt.Errorf("the SVID of %s expired at %s", id, end.Format(time.RFC3339))
	}
	return nil
}

// validity returns the span in which all certificates of a chain are valid, for
// the chain of which that lasts longest.
func validity(chains [][]*x509.Certificate) (begin, end time.Time) {
	for _, chain := range chains {
		from, to := chain[0].NotBefore, chain[0].NotAfter
		for _, certificate := range chain[1:] {
			if certificate.NotBefore.After(from) {
				from = certificate.NotBefore
			}
			if certificate.NotAfter.Before(to) {
				to = certificate.NotAfter
			}
		}
		if to.After(end) {
			begin, end = from, to
		}
	}
	return begin, end
}

// Verify checks the peer of a connection again and returns its SPIFFE ID. chain
// is what the peer sent, leaf first: tls.ConnectionState.PeerCertificates. It
// is meant to be called on every request: while neither the bundles nor the
// chain's validity changed since the last time, it costs a look into a map.
//
// Errors: secret.ErrUnavailable when the agent has no SVID, and
// secret.ErrUnauthenticated for everything that is wrong with the peer's.
func (s *Source) Verify(chain []*x509.Certificate) (spiffeid.ID, error) {
	if len(chain) == 0 {
		return spiffeid.ID{}, fmt.Errorf("%w: the peer sent no certificate", secret.ErrUnauthenticated)
	}
	s.mu.RLock()
	generation, err := s.generation, s.checkLocked()
	s.mu.RUnlock()
	if err != nil {
		return spiffeid.ID{}, err
	}
	now := s.now()
	if known, found := s.verified.get(chain[0], generation); found && known.holds(now) {
		return known.id, nil
	}
	id, chains, err := x509svid.Verify(chain, s, x509svid.WithTime(now))
	if err == nil {
		err = checkLeaf(id, chain[0])
	}
	if err != nil {
		if errors.Is(err, secret.ErrUnavailable) {
			return spiffeid.ID{}, err
		}
		return spiffeid.ID{}, fmt.Errorf("%w: verifying the peer's SVID: %w", secret.ErrUnauthenticated, err)
	}
	begin, end := validity(chains)
	// The generation read before is the one to remember: if the bundles changed
	// meanwhile, the next call verifies once more.
	s.verified.put(chain[0], generation, verdict{id: id, begin: begin, end: end})
	return id, nil
}
