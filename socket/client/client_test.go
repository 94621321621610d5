// SPDX-License-Identifier: Apache-2.0

package client_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
	"github.com/keyhole-agent/keyhole/socket/client"
	"github.com/keyhole-agent/keyhole/socket/sockettest"
	"github.com/keyhole-agent/keyhole/socket/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// everybody has one identity.
type everybody struct{ id spiffeid.ID }

func (e everybody) Accept(*net.UnixConn) (identity.Connection, error) { return e, nil }
func (e everybody) Caller(context.Context) (identity.Caller, error) {
	return identity.Caller{IDs: []spiffeid.ID{e.id}}, nil
}
func (e everybody) Close() error { return nil }

// agent is a server over a Door in an embedded trust domain.
type agent struct {
	server *socket.Server
	door   *sockettest.Door
	domain *devdomain.Server
	certs  *sockettest.Certificates
	config socket.Config
}

func start(t testing.TB, modify func(*socket.Config)) *agent {
	t.Helper()
	folder, err := os.MkdirTemp("", "kh") //nolint:usetesting // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, os.RemoveAll(folder)) })
	domain, err := devdomain.New(devdomain.Config{Dir: folder})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, domain.Close()) })
	certs, err := sockettest.NewCertificates(domain)
	if err != nil {
		t.Fatal(err)
	}
	a := &agent{door: &sockettest.Door{}, domain: domain, certs: certs}
	a.config = socket.Config{
		Path: filepath.Join(folder, "agent.sock"), AdminPath: filepath.Join(folder, "admin.sock"),
		Secrets: a.door, Administration: a.door, Statuses: a.door, Refusals: a.door,
		Certificates: certs, Peers: everybody{spiffeid.RequireFromString("spiffe://dev.keyhole.test/peer")},
	}
	if modify != nil {
		modify(&a.config)
	}
	a.serve(t)
	return a
}

func (a *agent) serve(t testing.TB) {
	t.Helper()
	server, err := socket.New(a.config)
	if err != nil {
		t.Fatal(err)
	}
	a.server = server
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		check(t, server.Close(context.Background()))
		check(t, <-served)
	})
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

func (a *agent) clientConfig() client.Config {
	return client.Config{Socket: a.config.Path, AdminSocket: a.config.AdminPath, WorkloadAPI: a.domain.WorkloadAddress()}
}

func connect(t testing.TB, config client.Config) *client.Client {
	t.Helper()
	c, err := client.New(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, c.Close()) })
	return c
}

func values(t testing.TB, from map[string]string) secret.Values {
	t.Helper()
	bytes := map[string][]byte{}
	for key, value := range from {
		bytes[key] = []byte(value)
	}
	v, err := secret.NewValues(bytes)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

var dbCreds = secret.MustParsePath("db/creds")

func TestEveryMethodOverBothWaysToProveWhoCalls(t *testing.T) {
	own := fmt.Sprintf("spiffe://dev.keyhole.test/uid/%d", os.Getuid())
	for name, want := range map[string]identity.Caller{
		"svid": {Source: identity.X509, IDs: []spiffeid.ID{spiffeid.RequireFromString(own)}},
		"peer": {Source: identity.Peer, IDs: []spiffeid.ID{spiffeid.RequireFromString("spiffe://dev.keyhole.test/peer")}},
	} {
		t.Run(name, func(t *testing.T) {
			a := start(t, nil)
			config := a.clientConfig()
			if name == "peer" {
				config.WorkloadAPI = ""
			}
			c := connect(t, config)
			useSecrets(t, c)
			administer(t, c, want.IDs[0])
			for _, call := range a.door.Calls() {
				if call.Caller.Source != want.Source || !reflect.DeepEqual(call.Caller.IDs, want.IDs) {
					t.Errorf("%s by %+v", call.Operation, call.Caller)
				}
			}
		})
	}
}

func useSecrets(t *testing.T, c *client.Client) {
	t.Helper()
	ctx := t.Context()
	sent := values(t, map[string]string{"password": "hunter2", "username": "app"})
	info, err := c.Put(ctx, dbCreds, sent)
	if err != nil || info.Current != 1 || info.Path != dbCreds || len(info.Keys) != 2 {
		t.Fatalf("put: %+v %v", info, err)
	}
	key := info.Keys[0].Key
	if value, _ := sent.Get(key); string(value) != "hunter2" {
		t.Errorf("what was put is %q afterwards, and belongs to the caller", value)
	}
	found, err := c.Get(ctx, dbCreds, 0)
	if err != nil {
		t.Fatal(err)
	}
	if value, _ := found.Values.Get(key); string(value) != "hunter2" || found.Version.Version != 1 || found.Info.ID != info.ID {
		t.Errorf("got %q, %+v", value, found)
	}
	if described, err := c.Describe(ctx, dbCreds); err != nil || !reflect.DeepEqual(described, info) {
		t.Errorf("described as %+v: %v", described, err)
	}
	if explained, err := c.Explain(ctx, policy.Read, dbCreds); err != nil || len(explained) != 1 || !explained[0].Decision.Allowed || explained[0].Permission != policy.Read {
		t.Errorf("explained as %+v: %v", explained, err)
	}
	if info, err := c.Delete(ctx, dbCreds, secret.Selection{All: true}); err != nil || info.Current != 0 {
		t.Errorf("deleted: %+v %v", info, err)
	}
}

func administer(t *testing.T, c *client.Client, self spiffeid.ID) {
	t.Helper()
	ctx := t.Context()
	for _, dry := range []bool{true, false, false} {
		var steps []secret.PurgeProgress
		for step, err := range c.Purge(ctx, secret.Purge{DryRun: dry, OlderThan: time.Second}) {
			if err != nil {
				t.Fatal(err)
			}
			steps = append(steps, step)
		}
		if dry && (len(steps) != 2 || steps[1].Paths[0] != dbCreds || steps[0].Found != 1) {
			t.Errorf("a dry run: %+v", steps)
		}
		if last := steps[len(steps)-1]; !dry && len(steps) == 1 && last.Found != 0 {
			t.Errorf("a purge: %+v", steps)
		}
	}
	want := []policy.Policy{{Name: "p", SPIFFEID: "spiffe://a/**", Path: "db/**", Permissions: []policy.Permission{policy.Read, policy.List}}}
	if err := c.ApplyPolicies(ctx, want); err != nil {
		t.Fatal(err)
	}
	if got, err := c.Policies(ctx); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("policies: %+v %v", got, err)
	}
	if err := c.DeletePolicy(ctx, "p"); err != nil {
		t.Error(err)
	}
	if err := c.DeletePolicy(ctx, "p"); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("deleted twice: %v", err)
	}
	if e, err := c.ExplainAs(ctx, self, policy.Write, dbCreds); err != nil || e.SPIFFEID != self || e.Permission != policy.Write || e.Path != dbCreds {
		t.Errorf("explained as %+v: %v", e, err)
	}
	if s, err := c.Status(ctx); err != nil || s.PID != 42 || len(s.Components) != 1 || !s.Development {
		t.Errorf("status %+v: %v", s, err)
	}
}

func TestAListingIsAllOfItsPages(t *testing.T) {
	a := start(t, nil)
	c := connect(t, a.clientConfig())
	v := values(t, map[string]string{"k": "v"})
	const many = 2345
	for i := range many {
		if _, err := a.door.Put(t.Context(), identity.Caller{IDs: []spiffeid.ID{{}}}, secret.MustParsePath(fmt.Sprintf("all/%05d", i)), v); err != nil {
			t.Fatal(err)
		}
	}
	seen := 0
	for entry, err := range c.List(t.Context(), secret.MustParsePath("all"), true) {
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("all/%05d", seen); entry.Path.String() != want {
			t.Fatalf("%s, want %s", entry.Path, want)
		}
		seen++
	}
	if seen != many {
		t.Errorf("%d of %d", seen, many)
	}
	if _, err := first(c.List(t.Context(), secret.Path{}, true)); err != nil { // leaving early asks for no further page
		t.Error(err)
	}
	asked := 0
	for _, call := range a.door.Calls() {
		if call.Operation == "list" {
			asked++
		}
	}
	if asked != 4 {
		t.Errorf("%d pages were asked for", asked)
	}
}

func TestEachErrorComesBackAsTheSameError(t *testing.T) {
	a := start(t, nil)
	c := connect(t, a.clientConfig())
	var fails error
	a.door.Fail = func(context.Context, string) error { return fails }
	for _, row := range wire.Failures() {
		if row.Reason == wire.PolicyNotFound {
			continue // in administer
		}
		t.Run(string(row.Reason), func(t *testing.T) {
			fails = errors.New("of no known kind")
			if row.Err != nil {
				fails = fmt.Errorf("in the depths: %w", row.Err)
			}
			_, listed := first(c.List(t.Context(), secret.Path{}, false))
			_, got := c.Get(t.Context(), dbCreds, 0)
			_, status := c.Status(t.Context())
			_, purged := first(c.Purge(t.Context(), secret.Purge{DryRun: true}))
			_, policies := c.Policies(t.Context())
			for _, err := range []error{listed, got, status, purged, policies} {
				var e *client.Error
				if !errors.As(err, &e) {
					t.Fatalf("%v is no client.Error", err)
				}
				if e.Reason != row.Reason || e.Code != row.Code || len(e.Request) != 32 {
					t.Errorf("%+v", e)
				}
				for _, other := range wire.Failures() {
					if other.Err != nil && errors.Is(err, other.Err) != errors.Is(other.Err, row.Err) {
						t.Errorf("%v, is it %v?", err, other.Err)
					}
				}
			}
		})
	}
}

func first[T any](seq func(func(T, error) bool)) (value T, err error) {
	for value, err = range seq {
		break
	}
	return value, err
}

func TestAWorkloadAPIThatDoesNotAnswerIsAnError(t *testing.T) {
	a := start(t, nil)
	if err := a.domain.Stop(devdomain.WorkloadAPI); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	c, err := client.New(ctx, a.clientConfig())
	if c != nil || !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), a.domain.WorkloadAddress()) {
		t.Errorf("%v %v", c, err)
	}
}

func TestAMalformedConfigurationIsAnError(t *testing.T) {
	if _, err := client.New(t.Context(), client.Config{WorkloadAPI: "spire.sock"}); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("%v", err)
	}
	environment := map[string]string{client.AgentIDVariable: "agent"}
	if _, err := client.FromEnvironment(func(name string) string { return environment[name] }); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("%v", err)
	}
	environment = map[string]string{
		"KEYHOLE_SOCKET": "/a", "KEYHOLE_ADMIN_SOCKET": "/b",
		"SPIFFE_ENDPOINT_SOCKET": "unix:///c", "KEYHOLE_AGENT_ID": "spiffe://d/e",
	}
	config, err := client.FromEnvironment(func(name string) string { return environment[name] })
	want := client.Config{Socket: "/a", AdminSocket: "/b", WorkloadAPI: "unix:///c", AgentID: spiffeid.RequireFromString("spiffe://d/e")}
	if err != nil || config != want {
		t.Errorf("%+v %v", config, err)
	}
}

func TestOnlyTheAgentIsTalkedTo(t *testing.T) {
	a := start(t, nil)
	config := a.clientConfig()
	config.AgentID = spiffeid.RequireFromString("spiffe://dev.keyhole.test/another/agent")
	_, err := connect(t, config).Put(t.Context(), dbCreds, values(t, map[string]string{"k": "v"}))
	if !errors.Is(err, secret.ErrUnauthenticated) || !strings.Contains(err.Error(), "keyhole/agent") {
		t.Errorf("%v", err)
	}
	config.AgentID = a.certs.Agent()
	if _, err := first(connect(t, config).List(t.Context(), secret.Path{}, true)); err != nil {
		t.Errorf("with the right ID: %v", err)
	}
	for _, call := range a.door.Calls() {
		if call.Operation == "put" {
			t.Error("the agent got what was not for it")
		}
	}
}

func TestASocketOfAnotherUserIsNotTalkedTo(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root, to listen as somebody else")
	}
	folder := t.TempDir()
	if len(folder) > 90 {
		t.Fatal("the folder's name is too long for a socket")
	}
	path := filepath.Join(folder, "s")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(t, unix.Close(fd)) }()
	if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
		t.Fatal(err)
	}
	// The kernel notes who calls listen, so one thread is another user for that.
	var listened sync.WaitGroup
	listened.Go(func() {
		runtime.LockOSThread() // and the thread ends with the goroutine, unless it is the first
		if err = become(12345); err == nil {
			err = errors.Join(unix.Listen(fd, 5), become(0))
		}
	})
	listened.Wait()
	if err != nil {
		t.Fatal(err)
	}
	_, err = connect(t, client.Config{Socket: path}).Get(t.Context(), dbCreds, 0)
	if !errors.Is(err, secret.ErrUnauthenticated) || !strings.Contains(err.Error(), "12345") {
		t.Errorf("%v", err)
	}
}

// become changes the effective uid of the calling thread alone.
func become(uid uintptr) error {
	const same = ^uintptr(0)
	if _, _, errno := unix.RawSyscall(unix.SYS_SETRESUID, same, uid, same); errno != 0 {
		return errno
	}
	return nil
}

func TestWithoutAnAgentTheErrorSaysSo(t *testing.T) {
	c := connect(t, client.Config{Socket: "/nonexistent/agent.sock", AdminSocket: "/nonexistent/admin.sock"})
	_, err := c.Get(t.Context(), dbCreds, 0)
	if !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("%v", err)
	}
	if err := c.Healthy(t.Context()); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	err = c.Wait(ctx)
	if !errors.Is(err, secret.ErrUnavailable) || !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "is it running") {
		t.Errorf("%v", err)
	}
}

func TestWaitReturnsWhenTheAgentServes(t *testing.T) {
	a := start(t, nil)
	for _, viaSVID := range []bool{true, false} {
		a.server.SetServing(false)
		config := a.clientConfig()
		if !viaSVID {
			config.WorkloadAPI = ""
		}
		c := connect(t, config)
		if err := c.Healthy(t.Context()); !errors.Is(err, secret.ErrUnavailable) {
			t.Errorf("before: %v", err)
		}
		waited := make(chan error, 1)
		go func() { waited <- c.Wait(t.Context()) }()
		a.server.SetServing(true)
		if err := <-waited; err != nil {
			t.Error(err)
		}
		if err := c.Healthy(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

func TestWaitOutlivesARestartOfTheAgent(t *testing.T) {
	a := start(t, nil)
	config := a.clientConfig()
	config.WorkloadAPI = ""
	c := connect(t, config)
	waited := make(chan error, 1)
	go func() { waited <- c.Wait(t.Context()) }()
	check(t, a.server.Close(t.Context()))
	a.serve(t)
	a.server.SetServing(true)
	if err := <-waited; err != nil {
		t.Error(err)
	}
}

// watched tells which certificate came last.
type watched struct {
	*sockettest.Certificates
	mu   sync.Mutex
	last *x509.Certificate
}

func (w *watched) Verify(chain []*x509.Certificate) (spiffeid.ID, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.last = chain[0]
	return w.Certificates.Verify(chain)
}

func TestARenewedSVIDIsUsedAndNoRequestIsLost(t *testing.T) {
	w := &watched{}
	a := start(t, func(c *socket.Config) {
		w.Certificates = c.Certificates.(*sockettest.Certificates)
		c.Certificates = w
	})
	entered, release := make(chan struct{}), make(chan struct{})
	a.door.Fail = func(_ context.Context, operation string) error {
		if operation == "describe" {
			close(entered)
			<-release
			return secret.ErrNotFound
		}
		return nil
	}
	c := connect(t, a.clientConfig())
	inFlight := make(chan error, 1)
	go func() {
		_, err := c.Describe(t.Context(), dbCreds)
		inFlight <- err
	}()
	<-entered
	w.mu.Lock()
	before := w.last
	w.mu.Unlock()
	a.domain.RotateSVIDs()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for renewed := false; !renewed; {
		if _, err := first(c.List(ctx, secret.Path{}, true)); err != nil {
			t.Fatal(err)
		}
		w.mu.Lock()
		renewed = !w.last.Equal(before)
		w.mu.Unlock()
	}
	close(release)
	if err := <-inFlight; !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("the request on the old connection: %v", err)
	}
}
