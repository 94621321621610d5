// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/identity/devdomain"
	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
)

// site is a trust domain that this process serves, and a folder for an agent
// that is run in it as in production.
type site struct {
	*devdomain.Server
	t       *testing.T
	dir     string
	program string // the agent's binary, at a path that makes it the agent
	rules   []devdomain.Rule
}

// newSite starts the trust domain example.org. Its agent is the program of that
// path, whatever the configuration says.
func newSite(t *testing.T, rules ...devdomain.Rule) *site {
	t.Helper()
	s := &site{t: t, dir: folder(t)}
	s.program = s.path("keyhole-agent")
	if err := os.Link(run.keyhole, s.program); err != nil {
		t.Fatal(err)
	}
	s.rules = append([]devdomain.Rule{s.agentIs("keyhole/agent")}, rules...)
	var err error
	s.Server, err = devdomain.New(devdomain.Config{
		Dir: s.path("spiffe"), TrustDomain: spiffeid.RequireTrustDomainFromString("example.org"), Rules: s.rules,
		BrokerCallers: []spiffeid.ID{exampleID("keyhole/agent"), exampleID("other/agent")},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func exampleID(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://example.org/" + path)
}

func (s *site) agentIs(path string) devdomain.Rule {
	return devdomain.Rule{Executable: s.program, IDs: []spiffeid.ID{exampleID(path)}}
}

func (s *site) path(names ...string) string {
	return filepath.Join(append([]string{s.dir}, names...)...)
}

func (s *site) config() string { return s.path("config.yaml") }

// init runs keyhole init, with root as the administrator.
func (s *site) init(more ...string) result {
	s.t.Helper()
	shell := session{t: s.t, environ: []string{"PATH=" + os.Getenv("PATH")}}
	return shell.keyhole(append([]string{
		"init", "--config", s.config(), "--trust-domain", "example.org", "--administrator", "spiffe://example.org/uid/0",
		"--workload-api", s.WorkloadAddress(), "--broker", s.BrokerAddress(),
		"--store", s.path("store", "keyhole.db"), "--audit", s.path("store", "audit"),
	}, more...)...)
}

// launch runs keyhole agent with the configuration of init.
func (s *site) launch(more ...string) *daemon {
	s.t.Helper()
	d := launch(s.t, s.dir, s.program, append([]string{
		"agent", "--config", s.config(), "--socket", s.path("agent.sock"), "--admin_socket", s.path("admin.sock"),
		"--mount.path", s.path("fs"), "--mount.link", s.path("secrets"),
	}, more...)...)
	d.environ = append(d.environ, "SPIFFE_ENDPOINT_SOCKET="+s.WorkloadAddress())
	return d
}

// start launches the agent and waits until it can identify workloads.
func (s *site) start(more ...string) *daemon {
	s.t.Helper()
	d := s.launch(more...)
	d.await("workloads can be identified")
	d.await(`"msg":"ready"`)
	return d
}

// ownSVID is what the Workload API at the address gives this process.
func ownSVID(t *testing.T, address string) *workloadapi.X509Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	got, err := workloadapi.FetchX509Context(ctx, workloadapi.WithAddr(address))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// readAs calls Get on a socket with any SVID, and talks to any agent: it is what
// an attacker would write. It returns gRPC's code.
func readAs(t *testing.T, socket string, svid *x509svid.SVID, path string) codes.Code {
	t.Helper()
	certificate := tls.Certificate{PrivateKey: svid.PrivateKey}
	for _, c := range svid.Certificates {
		certificate.Certificate = append(certificate.Certificate, c.Raw)
	}
	connection, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
		MinVersion: tls.VersionTLS13, InsecureSkipVerify: true,
		Certificates: []tls.Certificate{certificate},
	})))
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	_, err = pb.NewSecretsClient(connection).Get(ctx, &pb.GetRequest{Path: path})
	if err := errors.Join(ctx.Err(), connection.Close()); err != nil {
		t.Fatal(err)
	}
	return status.Code(err)
}

// issue makes an SVID that the trust domain would not give to anybody.
func (s *site) issue(leaf devdomain.Leaf) *x509svid.SVID {
	s.t.Helper()
	svid, err := s.Issue(leaf)
	if err != nil {
		s.t.Fatal(err)
	}
	return svid
}

func TestAnSVIDIsWorthNothingInAnotherTrustDomain(t *testing.T) {
	begin(t)
	here, there := newSite(t), startDev(t, filepath.Join(folder(t), "d"))
	here.init().ok()
	d := here.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=of example.org").ok()
	there.as(root).keyhole("secret", "put", "db/creds", "password=of development").ok()
	there.apply(appRead)
	d.apply("policies:\n- {name: here, spiffe_id: spiffe://example.org/uid/1001, path: db/**, permissions: [read]}\n")
	for _, way := range []func(session) session{asItIs, withoutCredential} {
		way(d.as(app)).keyhole("secret", "get", "db/creds", "password").says("of example.org")
		way(there.as(app)).keyhole("secret", "get", "db/creds", "password").says("of development")
	}
	d.as(app).cat(d.file("db/creds", "password")).says("of example.org")
	there.as(app).cat(there.file("db/creds", "password")).says("of development")

	// A client notices that the agent is not its own.
	lost := there.as(root).without("KEYHOLE_SOCKET")
	lost.environ = append(lost.environ, "KEYHOLE_SOCKET="+d.path("agent.sock"))
	lost.keyhole("secret", "get", "db/creds", "password").fails(denied, "not the agent that is expected", "example.org")

	// One that does not care is refused, the administrator of the other domain too.
	foreign := ownSVID(t, "unix://"+there.path("spiffe", "workload.sock"))
	own := ownSVID(t, here.WorkloadAddress())
	if code := readAs(t, d.path("agent.sock"), own.DefaultSVID(), "db/creds"); code != codes.OK {
		t.Errorf("the administrator's own SVID: %s", code)
	}
	if code := readAs(t, d.path("agent.sock"), foreign.DefaultSVID(), "db/creds"); code != codes.Unauthenticated {
		t.Errorf("a foreign SVID: %s", code)
	}
	d.mustHaveAudited(record{Operation: "get", Source: "x509", Decision: "denied", Reason: "dev.keyhole.test"})
	if code := readAs(t, there.path("agent.sock"), own.DefaultSVID(), "db/creds"); code != codes.Unauthenticated {
		t.Errorf("a foreign SVID: %s", code)
	}
	there.mustHaveAudited(record{Operation: "get", Source: "x509", Decision: "denied", Reason: "example.org"})
	d.verifies()
	d.stop()
	nothingIsLeft(t, &daemon{t: t, dir: d.dir + "/store", process: d.process})
}

func asItIs(s session) session            { return s }
func withoutCredential(s session) session { return s.without("SPIFFE_ENDPOINT_SOCKET") }

// The Workload API may hand out bundles of other domains. Who may call is what
// the configuration says.
func TestADomainThatOnlyTheWorkloadAPIKnowsIsNotTrusted(t *testing.T) {
	begin(t)
	here, there := newSite(t), startDev(t, filepath.Join(folder(t), "d"))
	here.init().ok()
	foreign := ownSVID(t, "unix://"+there.path("spiffe", "workload.sock"))
	bundle, err := foreign.Bundles.GetX509BundleForTrustDomain(foreign.DefaultSVID().ID.TrustDomain())
	if err != nil {
		t.Fatal(err)
	}
	here.SetFederated(spiffebundle.FromX509Bundle(bundle))
	if known := ownSVID(t, here.WorkloadAddress()).Bundles; !known.Has(bundle.TrustDomain()) {
		t.Fatal("the Workload API does not hand out the other domain's bundle")
	}
	d := here.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=of example.org").ok()
	// Even for a policy that names it.
	d.apply("policies:\n- {name: guests, spiffe_id: spiffe://dev.keyhole.test/uid/0, path: \"**\", permissions: [read]}\n")
	if code := readAs(t, d.path("agent.sock"), foreign.DefaultSVID(), "db/creds"); code != codes.Unauthenticated {
		t.Errorf("a workload of the other domain: %s", code)
	}
	d.mustHaveAudited(record{Operation: "get", Source: "x509", Decision: "denied", Reason: "dev.keyhole.test"})
}

func TestAnSVIDThatTheStandardForbidsIsRefused(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	for name, leaf := range map[string]devdomain.Leaf{
		"expired":   {ID: exampleID("uid/0"), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(-time.Minute)},
		"key usage": {ID: exampleID("uid/0"), KeyUsage: x509.KeyUsageKeyEncipherment},
		"no path":   {ID: spiffeid.RequireFromString("spiffe://example.org")},
	} {
		if code := readAs(t, d.path("agent.sock"), s.issue(leaf), "db/creds"); code != codes.Unauthenticated {
			t.Errorf("%s: %s", name, code)
		}
	}
	if code := readAs(t, d.path("agent.sock"), s.issue(devdomain.Leaf{ID: exampleID("uid/0")}), "db/creds"); code != codes.OK {
		t.Errorf("a good one: %s", code)
	}
}

func TestACallerWithoutAnEntryIsDenied(t *testing.T) {
	begin(t)
	s := newSite(t, devdomain.Rule{UID: new(uint32(nobody))})
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.apply("policies:\n- {name: all, spiffe_id: \"spiffe://example.org/**\", path: \"**\", permissions: [read, list]}\n")
	d.as(app).keyhole("secret", "get", "db/creds", "password").says("x")
	d.as(nobody).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds").fails(denied, "no SPIFFE ID")
	d.mustHaveAudited(record{UID: nobody, Operation: "get", Source: "peer", Decision: "denied"})
	d.as(nobody).keyhole("secret", "get", "db/creds").fails(unavailable, "SVID")
	d.as(nobody).cat(d.file("db/creds", "password")).cannot("Permission denied")
	d.mustHaveAudited(record{UID: nobody, Source: "broker", Decision: "denied"})

	// An entry that is taken away ends what it allowed.
	reader := startOpener(t, app, d.file("db/creds", "password"))
	if got := reader.open(); got != `"x"` {
		t.Fatalf("a workload with an entry: %s", got)
	}
	rule := devdomain.Rule{UID: new(uint32(app))}
	if err := s.SetRules(append(s.rules, rule)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the denial of a workload whose entry was removed", func() bool { return reader.open() != `"x"` })
	containsAll(t, "opening", reader.open(), "permission denied")
}

func TestAClientTalksOnlyToTheAgentItExpects(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.stop()

	s.rules[0] = s.agentIs("other/agent")
	if err := s.SetRules(s.rules); err != nil {
		t.Fatal(err)
	}
	d = s.start()
	shell := d.as(root)
	shell.keyhole("secret", "get", "db/creds", "password").fails(denied, "spiffe://example.org/other/agent", "spiffe://example.org/keyhole/agent")
	shell.environ = append(shell.environ, "KEYHOLE_AGENT_ID=spiffe://example.org/other/agent")
	shell.keyhole("secret", "get", "db/creds", "password").says("x")
	shell.environ = append(shell.environ, "KEYHOLE_AGENT_ID=spiffe://example.org/other/")
	shell.keyhole("secret", "get", "db/creds", "password").fails(usage, "KEYHOLE_AGENT_ID", "spiffe://example.org/other/")
}
