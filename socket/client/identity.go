// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/keyhole-agent/keyhole/secret"
)

// spiffeIdentity is this program's SVID, kept renewed, and whom it trusts.
type spiffeIdentity struct {
	source *workloadapi.X509Source
	agent  spiffeid.ID
	cancel context.CancelFunc
	work   sync.WaitGroup
}

// openIdentity waits for the first SVID.
func openIdentity(ctx context.Context, address string, agent spiffeid.ID) (*spiffeIdentity, error) {
	if _, bounded := ctx.Deadline(); !bounded {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, startTimeout)
		defer cancel()
	}
	source, err := workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(address)))
	if err != nil {
		return nil, fmt.Errorf("%w: fetching this program's SVID from the Workload API at %s: %w", secret.ErrUnavailable, address, err)
	}
	i := &spiffeIdentity{source: source, agent: agent}
	if agent.IsZero() {
		svid, err := source.GetX509SVID()
		if err == nil {
			i.agent, err = spiffeid.FromPath(svid.ID.TrustDomain(), agentPath)
		}
		if err != nil {
			return nil, errors.Join(fmt.Errorf("deciding which SPIFFE ID the agent must have: %w: %w", secret.ErrUnavailable, err), source.Close())
		}
	}
	return i, nil
}

// tls returns a configuration that talks to the agent only. It follows the
// source.
func (i *spiffeIdentity) tls() *tls.Config {
	config := tlsconfig.MTLSClientConfig(i.source, i.source, func(id spiffeid.ID, chains [][]*x509.Certificate) error {
		if id != i.agent {
			return fmt.Errorf("its SPIFFE ID is %s, and not %s", id, i.agent)
		}
		// X509-SVID, section 4.3; go-spiffe's verifier does not look.
		if chains[0][0].KeyUsage&x509.KeyUsageDigitalSignature == 0 {
			return errors.New("its SVID lacks the key usage digitalSignature")
		}
		return nil
	})
	config.MinVersion = tls.VersionTLS13
	return config
}

// follow renews the links with the SVID: the agent counts each connection's SVID
// only until it expires. It does so until close.
func (i *spiffeIdentity) follow(ctx context.Context, links ...*link) {
	ctx, i.cancel = context.WithCancel(ctx)
	i.work.Go(func() {
		for {
			select {
			case <-i.source.Updated():
				for _, l := range links {
					l.renew()
				}
			case <-ctx.Done():
				return
			}
		}
	})
}

func (i *spiffeIdentity) close() error {
	if i.cancel != nil {
		i.cancel()
	}
	i.work.Wait()
	if err := i.source.Close(); err != nil {
		return fmt.Errorf("closing the connection to the Workload API: %w", err)
	}
	return nil
}
