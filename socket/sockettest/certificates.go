// SPDX-License-Identifier: Apache-2.0

package sockettest

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/socket"

	"github.com/keyhole-agent/keyhole/secret"
)

// Certificates is the agent's side of mTLS in an embedded trust domain, with a
// clock that can be moved.
type Certificates struct {
	domain *devdomain.Server
	agent  *x509svid.SVID

	mu    sync.Mutex
	ahead time.Duration
	known map[*x509.Certificate]spiffeid.ID // verified, at the present position of the clock
}

var _ socket.Certificates = (*Certificates)(nil)

// NewCertificates gives the agent an SVID with the path /keyhole/agent.
func NewCertificates(domain *devdomain.Server) (*Certificates, error) {
	id, err := spiffeid.FromPath(domain.TrustDomain(), "/keyhole/agent")
	if err != nil {
		return nil, err
	}
	agent, err := domain.Issue(devdomain.Leaf{ID: id})
	if err != nil {
		return nil, fmt.Errorf("making the agent's SVID: %w", err)
	}
	return &Certificates{domain: domain, agent: agent, known: map[*x509.Certificate]spiffeid.ID{}}, nil
}

// Agent returns the agent's SPIFFE ID.
func (c *Certificates) Agent() spiffeid.ID { return c.agent.ID }

// Advance moves the clock that SVIDs are verified with.
func (c *Certificates) Advance(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ahead += by
	clear(c.known)
}

// ServerTLS implements socket.Certificates.
func (c *Certificates) ServerTLS() *tls.Config {
	return tlsconfig.MTLSServerConfig(c.agent, c.domain, tlsconfig.AuthorizeAny())
}

// ClientTLS returns what a client with the given SVID uses that pins the agent.
func (c *Certificates) ClientTLS(svid *x509svid.SVID) *tls.Config {
	config := tlsconfig.MTLSClientConfig(svid, c.domain, tlsconfig.AuthorizeID(c.agent.ID))
	config.NextProtos = []string{"h2"}
	return config
}

// Verify implements socket.Certificates.
func (c *Certificates) Verify(chain []*x509.Certificate) (spiffeid.ID, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if id, ok := c.known[chain[0]]; ok {
		return id, nil
	}
	now := time.Now().Add(c.ahead) // the domain's certificates are of now
	id, _, err := x509svid.Verify(chain, c.domain, x509svid.WithTime(now))
	if err != nil {
		return spiffeid.ID{}, fmt.Errorf("%w: %w", secret.ErrUnauthenticated, err)
	}
	c.known[chain[0]] = id
	return id, nil
}
