// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
)

func (s *site) halt(apis ...devdomain.API) {
	s.t.Helper()
	for _, api := range apis {
		if err := s.Stop(api); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *site) resume(apis ...devdomain.API) {
	s.t.Helper()
	for _, api := range apis {
		if err := s.Start(api); err != nil {
			s.t.Fatal(err)
		}
	}
}

func TestAnAgentWaitsForItsIdentityAndItsBroker(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.stop()

	s.halt(devdomain.WorkloadAPI, devdomain.BrokerAPI)
	d = s.launch()
	d.await(`"msg":"ready"`)
	read := func() result {
		return d.as(root).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password")
	}
	d.as(root).without("SPIFFE_ENDPOINT_SOCKET").keyhole("status").shows("The agent serves")
	read().fails(unavailable, "unavailable")
	d.as(root).cat(d.file("db/creds", "password")).cannot("Input/output error")

	s.resume(devdomain.WorkloadAPI)
	d.await("received the agent's SVID")
	d.as(root).keyhole("secret", "get", "db/creds", "password").says("x") // with an SVID: needs no broker
	read().fails(unavailable, "unavailable")
	d.as(root).cat(d.file("db/creds", "password")).cannot("Input/output error")
	d.as(root).keyhole("status").shows("identity  ok", "broker    FAULT")

	s.resume(devdomain.BrokerAPI)
	d.await("workloads can be identified")
	read().says("x")
	d.as(root).cat(d.file("db/creds", "password")).says("x")
	d.as(root).keyhole("status").shows("broker    ok")
	d.verifies()
}

func TestAnOutageOfTheBrokerIsBridgedForWhoIsKnown(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.apply("policies:\n- {name: app, spiffe_id: spiffe://example.org/uid/1001, path: db/**, permissions: [read, list]}\n")
	file := d.file("db/creds", "password")
	known := startOpener(t, app, file)
	if got := known.open(); got != `"x"` {
		t.Fatalf("before the outage: %s", got)
	}

	s.halt(devdomain.BrokerAPI)
	eventually(t, "the end of the broker's last answer", func() bool {
		if got := known.open(); got != `"x"` {
			t.Fatalf("a process that is known, in the outage: %s", got)
		}
		return strings.Contains(d.log.text(), `"served":true`) // asked again, in vain
	})
	d.as(app).cat(file).cannot("Input/output error")
	d.as(app).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password").fails(unavailable, "unavailable")
	d.as(app).keyhole("secret", "get", "db/creds", "password").says("x") // with an SVID: needs no broker
	d.as(root).keyhole("status").shows("broker    FAULT")
	d.mustHaveAudited(record{UID: app, Source: "broker", Decision: "denied", Reason: "unavailable"})
	if rounds(1, 2) > 1 { // the end of the grace takes half a minute
		eventually(t, "the end of the grace", func() bool { return strings.Contains(known.open(), "input/output error") })
	}

	s.resume(devdomain.BrokerAPI)
	eventually(t, "the broker's answer", func() bool { return d.as(app).cat(file).out == "x" })
	if got := known.open(); got != `"x"` {
		t.Errorf("after the outage: %s", got)
	}
	d.as(app).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password").says("x")
	d.as(root).keyhole("status").shows("broker    ok")
}

func TestAnOutageOfTheWorkloadAPIIsNoneOfTheAgent(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	c := d.client()
	s.halt(devdomain.WorkloadAPI)
	if got, err := get(t.Context(), c, "db/creds", "password", 0); err != nil || got != "x" {
		t.Errorf("with the SVID that there is: %q, %v", got, err)
	}
	d.as(root).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password").says("x")
	d.as(root).cat(d.file("db/creds", "password")).says("x")
	s.resume(devdomain.WorkloadAPI)
	d.as(root).keyhole("secret", "get", "db/creds", "password").says("x")
}

// After the authorities were rotated and the old ones dropped, the agent has an
// SVID by the new ones, and so have its clients.
func TestARotationOfTheTrustDomainIsFollowed(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	c := d.client()
	old := ownSVID(t, s.WorkloadAddress()).DefaultSVID()
	if err := s.RotateAuthorities(); err != nil {
		t.Fatal(err)
	}
	s.DropOldAuthorities()
	eventually(t, "the refusal of an SVID of before", func() bool {
		return readAs(t, d.path("agent.sock"), old, "db/creds").String() == "Unauthenticated"
	})
	eventually(t, "an answer to a client that was connected", func() bool {
		got, err := get(t.Context(), c, "db/creds", "password", 0)
		return err == nil && got == "x"
	})
	eventually(t, "an answer to a new client", func() bool {
		return d.as(root).keyhole("secret", "get", "db/creds", "password").out == "x"
	})
	d.as(app).cat(d.file("db/creds", "password")).cannot("No such file or directory")
	d.as(root).cat(d.file("db/creds", "password")).says("x")
}
