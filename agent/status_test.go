// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
)

func componentNamed(t testing.TB, status socket.Status, name string) socket.Component {
	t.Helper()
	for _, c := range status.Components {
		if c.Name == name {
			return c
		}
	}
	t.Fatalf("no component %s in %+v", name, status)
	return socket.Component{}
}

// requireFault checks that one part of the agent is at fault, and no other.
func requireFault(t testing.TB, a *Agent, name, words string) {
	t.Helper()
	status, err := a.Status(t.Context(), as(admin))
	check(t, err)
	for _, c := range status.Components {
		if c.Name == "privileges" {
			continue
		}
		if c.Healthy == (c.Name == name) || c.Message == "" {
			t.Errorf("%+v", c)
		}
		if c.Name == name && !strings.Contains(c.Message, words) {
			t.Errorf("%q lacks %q", c.Message, words)
		}
	}
}

func TestAllPartsOfAHealthyAgentAreWell(t *testing.T) {
	s := surround(t)
	s.config.Mount.Enabled = os.Geteuid() == 0
	s.config.Development = true
	a := s.start(t)
	requireFault(t, a, "none of them", "")
	status, err := a.Status(t.Context(), as(admin))
	check(t, err)
	if status.Version != "test" || status.PID != os.Getpid() || status.Started.IsZero() || !status.Development ||
		status.SPIFFEID != "spiffe://dev.keyhole.test/keyhole/agent" {
		t.Errorf("%+v", status)
	}
	if _, err := a.Status(t.Context(), as(nobody)); err == nil {
		t.Error("somebody without the power is told")
	} else {
		wants(t, err, secret.ErrDenied, "sys/status")
	}
}

func TestAnAgentThatCannotMountStillServes(t *testing.T) {
	s := surround(t)
	s.config.Mount.Enabled = true
	check(t, os.WriteFile(filepath.Join(s.dir, "file"), nil, 0o600))
	s.config.Mount.Path = filepath.Join(s.dir, "file", "fs")
	a := s.start(t)
	requireFault(t, a, "mount", "not a directory")
	if !strings.Contains(s.log.String(), "secrets are not served as files; the sockets serve them") {
		t.Error(s.log)
	}
}

func TestABrokerThatGoesAwayIsAFault(t *testing.T) {
	s := surround(t)
	a := s.start(t)
	check(t, s.domain.Stop(devdomain.BrokerAPI))
	requireFault(t, a, "broker", "unavailable")
	check(t, s.domain.Start(devdomain.BrokerAPI))
}

func TestAMissingBrokerMattersToTheMount(t *testing.T) {
	s := surround(t)
	s.config.Identity.Broker = ""
	a := s.start(t)
	requireFault(t, a, "none of them", "")
	a.config.Mount.Enabled = true
	status, err := a.Status(t.Context(), as(admin))
	check(t, err)
	if c := componentNamed(t, status, "broker"); c.Healthy || !strings.Contains(c.Message, "identity.broker") {
		t.Errorf("%+v", c)
	}
	a.config.Mount.Enabled = false
}

func TestAnAgentWithoutAnSVIDSaysWhatItWaitsFor(t *testing.T) {
	s := surround(t)
	check(t, s.domain.Stop(devdomain.WorkloadAPI))
	a := s.open(t)
	status, err := a.Status(t.Context(), as(admin))
	check(t, err)
	identity, broker := componentNamed(t, status, "identity"), componentNamed(t, status, "broker")
	if identity.Healthy || broker.Healthy || status.SPIFFEID != "" ||
		!strings.Contains(identity.Message, "waiting for an SVID") || !strings.Contains(broker.Message, "no SVID yet") {
		t.Errorf("%+v", status)
	}
	check(t, a.close(t.Context()))
}

func TestAStoreThatWasMovedAwayIsAFault(t *testing.T) {
	s := surround(t)
	a := s.start(t)
	check(t, os.Rename(s.config.Store.Path, s.config.Store.Path+".away"))
	requireFault(t, a, "store", "moved or deleted")
	check(t, os.Rename(s.config.Store.Path+".away", s.config.Store.Path))
	requireFault(t, a, "none of them", "")
}

func TestASocketThatIsGoneIsAFault(t *testing.T) {
	s := surround(t)
	a := s.open(t)
	a.Identifies(t.Context())
	check(t, os.Rename(s.config.Socket, s.config.Socket+".away"))
	requireFault(t, a, "socket", s.config.Socket+" is there no longer; start the agent again")
	check(t, os.Rename(s.config.Socket+".away", s.config.Socket))
	requireFault(t, a, "none of them", "")
	check(t, a.sockets.Close(t.Context()))
	<-a.unserved
	requireFault(t, a, "socket", "served no longer")
	check(t, a.close(t.Context()))
}

func TestTheAuditLogIsVerifiedByWhoeverHasThePower(t *testing.T) {
	s := surround(t)
	a := s.start(t)
	_, err := a.VerifyAudit(t.Context(), as(nobody))
	wants(t, err, secret.ErrDenied, "sys/audit")
	report, err := a.VerifyAudit(t.Context(), as(admin))
	check(t, err)
	if report.Records < 3 || report.Segments != 1 || len(report.Problems) > 0 {
		t.Errorf("%+v", report)
	}
	segments, err := filepath.Glob(filepath.Join(s.config.Audit.Path, "*"))
	check(t, err)
	file, err := os.OpenFile(segments[0], os.O_RDWR, 0)
	check(t, err)
	content, err := os.ReadFile(segments[0])
	check(t, err)
	_, err = file.WriteAt([]byte("somebody"), int64(strings.Index(string(content), "/nobody")))
	check(t, err)
	check(t, file.Close())
	report, err = a.VerifyAudit(t.Context(), as(admin))
	check(t, err)
	if len(report.Problems) == 0 {
		t.Errorf("%+v", report)
	}
}

func TestTheAuditLogIsVerifiedWithoutAnAgent(t *testing.T) {
	s := surround(t)
	a := s.open(t)
	opener := s.options(t).Opener
	_, err := VerifyAudit(t.Context(), s.config, opener)
	wants(t, err, secret.ErrInUse)
	check(t, a.close(t.Context()))
	report, err := VerifyAudit(t.Context(), s.config, s.options(t).Opener)
	check(t, err)
	if report.Records == 0 || len(report.Problems) > 0 {
		t.Errorf("%+v", report)
	}
	_, err = VerifyAudit(t.Context(), s.config, opener)
	wants(t, err, secret.ErrInvalid) // it was cleared
}
