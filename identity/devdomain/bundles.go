// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// x509DER is a bundle's X.509 authorities in DER, one after the other.
func x509DER(of *spiffebundle.Bundle) []byte {
	var der []byte
	for _, root := range of.X509Authorities() {
		der = append(der, root.Raw...)
	}
	return der
}

// foreignX509 maps the IDs of the federated trust domains to their authorities.
func (st *state) foreignX509() map[string][]byte {
	bundles := make(map[string][]byte, len(st.federated)+1)
	for _, foreign := range st.federated {
		bundles[foreign.TrustDomain().IDString()] = x509DER(foreign)
	}
	return bundles
}

// allX509 is foreignX509 with our own trust domain.
func (st *state) allX509() map[string][]byte {
	bundles := st.foreignX509()
	bundles[st.authority.domain.IDString()] = x509DER(st.authority.bundle)
	return bundles
}

// allJWT maps the IDs of all trust domains to their JWT authorities, as JWK sets
// (RFC 7517). The error has a gRPC status.
func (st *state) allJWT() (map[string][]byte, error) {
	bundles := make(map[string][]byte, len(st.federated)+1)
	for _, each := range append([]*spiffebundle.Bundle{st.authority.bundle}, st.federated...) {
		text, err := each.JWTBundle().Marshal()
		if err != nil {
			return nil, status.Errorf(codes.Internal, "encoding the bundle of %s: %v", each.TrustDomain().Name(), err)
		}
		bundles[each.TrustDomain().IDString()] = text
	}
	return bundles, nil
}
