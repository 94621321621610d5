// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/proto"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
)

var domainName = spiffeid.RequireTrustDomainFromString(devdomain.DefaultTrustDomain)

func testClient() *Client { return &Client{domain: domainName, now: time.Now} }

// message is what a broker sends about id, in a certificate of carried.
func message(t testing.TB, s *devdomain.Server, id string, leaf devdomain.Leaf) *broker.X509SVID {
	t.Helper()
	svid, err := s.Issue(leaf)
	if err != nil {
		t.Fatal(err)
	}
	chain, key, err := svid.MarshalRaw()
	if err != nil {
		t.Fatal(err)
	}
	return &broker.X509SVID{SpiffeId: id, X509Svid: chain, X509SvidKey: key}
}

func startServer(t testing.TB) *devdomain.Server {
	t.Helper()
	s, err := devdomain.New(devdomain.Config{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func TestPrivateKeysAreClearedEvenInABadAnswer(t *testing.T) {
	s := startServer(t)
	good := devdomain.Leaf{ID: spiffeid.RequireFromPath(domainName, "/a")}
	answer := &broker.SubscribeToX509SVIDResponse{Svids: []*broker.X509SVID{
		message(t, s, good.ID.String(), good), message(t, s, "nonsense", good), message(t, s, good.ID.String(), good),
	}}
	if _, err := testClient().parse(answer); err == nil {
		t.Error("a malformed ID was accepted")
	}
	for i, svid := range answer.Svids {
		if len(svid.X509SvidKey) == 0 || !bytes.Equal(svid.X509SvidKey, make([]byte, len(svid.X509SvidKey))) {
			t.Errorf("the key of SVID %d is still there", i+1)
		}
	}
}

func TestAnAnswerIsTheIDsOnceAndTheFirstEnd(t *testing.T) {
	s := startServer(t)
	soon := time.Now().Add(time.Minute).Truncate(time.Second)
	a, b := spiffeid.RequireFromPath(domainName, "/a"), spiffeid.RequireFromPath(domainName, "/b")
	grant, err := testClient().parse(&broker.SubscribeToX509SVIDResponse{Svids: []*broker.X509SVID{
		message(t, s, b.String(), devdomain.Leaf{ID: b}),
		message(t, s, a.String(), devdomain.Leaf{ID: a, NotAfter: soon}),
		message(t, s, b.String(), devdomain.Leaf{ID: b}),
	}})
	if err != nil || len(grant.IDs) != 2 || grant.IDs[0] != b || grant.IDs[1] != a || !grant.Expires.Equal(soon) {
		t.Errorf("got %+v, %v", grant, err)
	}
}

func TestAnythingWrongDiscardsAnAnswer(t *testing.T) {
	s := startServer(t)
	a := spiffeid.RequireFromPath(domainName, "/a")
	leaf := devdomain.Leaf{ID: a}
	past := time.Now().Add(-time.Minute)
	with := func(id string, leaf devdomain.Leaf, change func(*broker.X509SVID)) *broker.X509SVID {
		svid := message(t, s, id, leaf)
		if change != nil {
			change(svid)
		}
		return svid
	}
	for name, test := range map[string]struct {
		svid *broker.X509SVID
		want string
	}{
		"no ID":             {with("", leaf, nil), `SPIFFE ID ""`},
		"malformed ID":      {with("spiffe://dev.keyhole.test/a/../b", leaf, nil), "SPIFFE ID"},
		"root path":         {with(domainName.IDString(), devdomain.Leaf{ID: domainName.ID()}, nil), "has no path"},
		"foreign":           {with("spiffe://example.org/a", leaf, nil), "not of the trust domain"},
		"somebody else's":   {with(a.String()+"b", leaf, nil), "is that of spiffe://dev.keyhole.test/a"},
		"no certificate":    {with(a.String(), leaf, func(m *broker.X509SVID) { m.X509Svid = nil }), "no certificate"},
		"broken":            {with(a.String(), leaf, func(m *broker.X509SVID) { m.X509Svid = m.X509Svid[:40] }), "certificate of"},
		"expired":           {with(a.String(), devdomain.Leaf{ID: a, NotBefore: past.Add(-time.Hour), NotAfter: past}, nil), "expired"},
		"nothing at all":    {nil, "SPIFFE ID"},
		"empty certificate": {&broker.X509SVID{SpiffeId: a.String()}, "no certificate"},
	} {
		t.Run(name, func(t *testing.T) {
			grant, err := testClient().parse(&broker.SubscribeToX509SVIDResponse{Svids: []*broker.X509SVID{with(a.String(), leaf, nil), test.svid}})
			if err == nil || !strings.Contains(err.Error(), test.want) || len(grant.IDs) != 0 {
				t.Errorf("got %+v, %v", grant, err)
			}
		})
	}
}

func FuzzAnAnswerHoldsOnlyIDsOfTheDomain(f *testing.F) {
	s := startServer(f)
	a := spiffeid.RequireFromPath(domainName, "/a")
	seed, err := proto.Marshal(&broker.SubscribeToX509SVIDResponse{Svids: []*broker.X509SVID{message(f, s, a.String(), devdomain.Leaf{ID: a})}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(seed)
	f.Fuzz(func(t *testing.T, text []byte) {
		answer := new(broker.SubscribeToX509SVIDResponse)
		if proto.Unmarshal(text, answer) != nil {
			return
		}
		grant, err := testClient().parse(answer)
		if err != nil && len(grant.IDs) > 0 {
			t.Errorf("IDs beside an error: %s", grant.IDs)
		}
		for _, id := range grant.IDs {
			if !id.MemberOf(domainName) || id.Path() == "" {
				t.Errorf("got %s", id)
			}
		}
	})
}
