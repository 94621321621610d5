// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"net/url"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/go-jose/go-jose/v4/jwt"
	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
)

// authorityLifetime is longer than any process that holds one in memory.
const authorityLifetime = 10 * 365 * 24 * time.Hour

// backdate is how far in the past validity begins, for clocks that step back.
const backdate = 10 * time.Second

// authority signs SVIDs with ECDSA P-256 keys that exist only in memory. It is
// never modified.
type authority struct {
	domain spiffeid.TrustDomain
	root   *x509.Certificate
	key    *ecdsa.PrivateKey // signs X.509-SVIDs
	jwtID  string
	jwtKey *ecdsa.PrivateKey
	bundle *spiffebundle.Bundle // our public halves, and those of authorities before
}

func newAuthority(domain spiffeid.TrustDomain, now time.Time) (*authority, error) {
	a := &authority{domain: domain, bundle: spiffebundle.New(domain)}
	var err error
	if a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("making the X.509 authority's key: %w", err)
	}
	if a.jwtKey, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, fmt.Errorf("making the JWT authority's key: %w", err)
	}
	serial := newSerial()
	a.jwtID = serial.Text(16)
	template := &x509.Certificate{
		SerialNumber:          serial,
		Subject:               pkix.Name{Organization: []string{"Keyhole development"}, CommonName: domain.Name()},
		NotBefore:             now.Add(-backdate),
		NotAfter:              now.Add(authorityLifetime),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		URIs:                  []*url.URL{domain.ID().URL()},
	}
	if a.root, err = sign(template, template, a.key.Public(), a.key); err != nil {
		return nil, fmt.Errorf("signing the X.509 authority: %w", err)
	}
	a.bundle.AddX509Authority(a.root)
	if err := a.bundle.AddJWTAuthority(a.jwtID, a.jwtKey.Public()); err != nil {
		return nil, fmt.Errorf("adding the JWT authority: %w", err)
	}
	return a, nil
}

// after returns a, which also trusts what before trusted.
func (a *authority) after(before *authority) *authority {
	next := *a
	next.bundle = before.bundle.Clone()
	next.bundle.AddX509Authority(a.root)
	keys := next.bundle.JWTAuthorities()
	keys[a.jwtID] = a.jwtKey.Public()
	next.bundle.SetJWTAuthorities(keys)
	return &next
}

// alone returns a, which trusts nothing but itself.
func (a *authority) alone() *authority {
	next := *a
	next.bundle = spiffebundle.New(a.domain)
	next.bundle.AddX509Authority(a.root)
	next.bundle.SetJWTAuthorities(map[string]crypto.PublicKey{a.jwtID: a.jwtKey.Public()})
	return &next
}

// Leaf describes an X.509-SVID to make. Tests make faulty ones with it.
type Leaf struct {
	ID        spiffeid.ID
	NotBefore time.Time     // zero: a little before now
	NotAfter  time.Time     // zero: after the configured lifetime
	KeyUsage  x509.KeyUsage // zero: digitalSignature
}

// Issue makes an X.509-SVID by the current authority, without asking whether
// the standard allows it. It is for those who run the server, in its process.
func (s *Server) Issue(leaf Leaf) (*x509svid.SVID, error) {
	now, _ := s.current()
	return s.issue(now.authority, leaf)
}

func (s *Server) issue(a *authority, leaf Leaf) (*x509svid.SVID, error) {
	now := s.config.Now()
	if leaf.NotBefore.IsZero() {
		leaf.NotBefore = now.Add(-backdate)
	}
	if leaf.NotAfter.IsZero() {
		leaf.NotAfter = now.Add(s.config.SVIDLifetime)
	}
	if leaf.KeyUsage == 0 {
		leaf.KeyUsage = x509.KeyUsageDigitalSignature
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("making a key for %s: %w", leaf.ID, err)
	}
	certificate, err := sign(&x509.Certificate{
		SerialNumber:          newSerial(),
		Subject:               pkix.Name{Organization: []string{"Keyhole development"}},
		NotBefore:             leaf.NotBefore,
		NotAfter:              leaf.NotAfter,
		BasicConstraintsValid: true,
		KeyUsage:              leaf.KeyUsage,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		URIs:                  []*url.URL{leaf.ID.URL()},
	}, a.root, key.Public(), a.key)
	if err != nil {
		return nil, fmt.Errorf("signing an SVID for %s: %w", leaf.ID, err)
	}
	return &x509svid.SVID{ID: leaf.ID, Certificates: []*x509.Certificate{certificate}, PrivateKey: key}, nil
}

// issueJWT makes a JWT-SVID (JWT-SVID standard, sections 3 and 4).
func (s *Server) issueJWT(a *authority, id spiffeid.ID, audience []string) (string, error) {
	signer, err := jose.NewSigner(
		jose.SigningKey{Algorithm: jose.ES256, Key: jose.JSONWebKey{Key: a.jwtKey, KeyID: a.jwtID}},
		new(jose.SignerOptions).WithType("JWT"))
	if err != nil {
		return "", fmt.Errorf("making a signer of JWTs: %w", err)
	}
	now := s.config.Now()
	token, err := jwt.Signed(signer).Claims(jwt.Claims{
		Subject:  id.String(),
		Audience: audience,
		IssuedAt: jwt.NewNumericDate(now),
		Expiry:   jwt.NewNumericDate(now.Add(s.config.JWTLifetime)),
	}).Serialize()
	if err != nil {
		return "", fmt.Errorf("signing a JWT-SVID for %s: %w", id, err)
	}
	return token, nil
}

func sign(template, parent *x509.Certificate, public crypto.PublicKey, signer crypto.Signer) (*x509.Certificate, error) {
	der, err := x509.CreateCertificate(rand.Reader, template, parent, public, signer)
	if err != nil {
		return nil, err
	}
	return x509.ParseCertificate(der)
}

// newSerial returns a positive number of 120 random bits; RFC 5280 (section
// 4.1.2.2) allows 20 octets.
func newSerial() *big.Int {
	var number [16]byte
	_, _ = rand.Read(number[1:]) // never fails: crypto/rand ends the program instead
	number[0] = 1
	return new(big.Int).SetBytes(number[:])
}
