// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"

	"github.com/keyhole-agent/keyhole/identity"
)

// parse takes the IDs from an answer, each once and in the broker's order, and
// the end of the SVID that ends first. Anything wrong in it discards it whole:
// a broker that sends nonsense beside an ID is not believed about the ID.
func (c *Client) parse(answer *broker.SubscribeToX509SVIDResponse) (identity.Grant, error) {
	for _, svid := range answer.GetSvids() {
		clear(svid.GetX509SvidKey())
	}
	var grant identity.Grant
	for i, svid := range answer.GetSvids() {
		id, end, err := c.parseSVID(svid)
		if err != nil {
			return identity.Grant{}, fmt.Errorf("discarding its answer: SVID %d: %w", i+1, err)
		}
		if !slices.Contains(grant.IDs, id) {
			grant.IDs = append(grant.IDs, id)
		}
		if grant.Expires.IsZero() || end.Before(grant.Expires) {
			grant.Expires = end
		}
	}
	return grant, nil
}

// parseSVID does not verify the chain: the server was authenticated, and it is
// the authority for what it says. The certificate must only agree with it.
func (c *Client) parseSVID(svid *broker.X509SVID) (spiffeid.ID, time.Time, error) {
	id, err := spiffeid.FromString(svid.GetSpiffeId())
	if err != nil {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("SPIFFE ID %q: %w", svid.GetSpiffeId(), err)
	}
	if id.Path() == "" {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("the SPIFFE ID %s has no path", id)
	}
	if !id.MemberOf(c.domain) {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("the SPIFFE ID %s is not of the trust domain %q", id, c.domain.Name())
	}
	chain, err := x509.ParseCertificates(svid.GetX509Svid())
	if err != nil {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if len(chain) == 0 {
		return spiffeid.ID{}, time.Time{}, errors.New("there is no certificate for " + id.String())
	}
	carried, err := x509svid.IDFromCert(chain[0])
	if err != nil {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if carried != id {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("the certificate of %s is that of %s", id, carried)
	}
	end := chain[0].NotAfter
	if c.now().After(end) {
		return spiffeid.ID{}, time.Time{}, fmt.Errorf("the certificate of %s expired at %s", id, end.Format(time.RFC3339))
	}
	return id, end, nil
}
