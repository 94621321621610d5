// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"go.uber.org/goleak"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
	"github.com/keyhole-agent/keyhole/socket/sockettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	web     = spiffeid.RequireFromString("spiffe://dev.keyhole.test/web")
	dbCreds = secret.MustParsePath("db/creds")
)

// fixture is a served pair of sockets over a Door.
type fixture struct {
	server     *socket.Server
	config     socket.Config
	door       *sockettest.Door
	domain     *devdomain.Server
	certs      *sockettest.Certificates
	path       string
	admin      string
	stopServer func(ctx context.Context) error
}

// start serves with mTLS, and no way for those who offer no credential.
func start(t testing.TB, modify func(*socket.Config)) *fixture {
	t.Helper()
	folder := shortDir(t)
	domain, err := devdomain.New(devdomain.Config{Dir: filepath.Join(folder, "spiffe")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, domain.Close()) })
	certs, err := sockettest.NewCertificates(domain)
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{
		door: &sockettest.Door{}, domain: domain, certs: certs,
		path: filepath.Join(folder, "run", "agent.sock"), admin: filepath.Join(folder, "run", "admin.sock"),
	}
	f.config = socket.Config{
		Path: f.path, AdminPath: f.admin, Secrets: f.door, Administration: f.door,
		Statuses: f.door, Refusals: f.door, Certificates: certs,
	}
	if modify != nil {
		modify(&f.config)
	}
	f.server, err = socket.New(f.config)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- f.server.Serve() }()
	stopped := false
	f.stopServer = func(ctx context.Context) error {
		if stopped {
			return nil
		}
		stopped = true
		err := f.server.Close(ctx)
		check(t, <-served)
		return err
	}
	t.Cleanup(func() { check(t, f.stopServer(context.Background())) })
	return f
}

// shortDir is a folder whose name leaves room for a socket's.
func shortDir(t testing.TB) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "kh") //nolint:usetesting // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { check(t, os.RemoveAll(folder)) })
	return folder
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
	}
}

// issue makes an SVID of the fixture's own domain.
func (f *fixture) issue(t testing.TB, leaf devdomain.Leaf) *x509svid.SVID {
	t.Helper()
	svid, err := f.domain.Issue(leaf)
	if err != nil {
		t.Fatal(err)
	}
	return svid
}

// connect calls with an SVID, or offers no credential when it is nil.
func (f *fixture) connect(t testing.TB, path string, svid *x509svid.SVID) *grpc.ClientConn {
	t.Helper()
	transport := insecure.NewCredentials()
	if svid != nil {
		transport = credentials.NewTLS(f.certs.ClientTLS(svid))
	}
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(transport))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some tests did already
	return conn
}

func (f *fixture) asWeb(t testing.TB, path string) *grpc.ClientConn {
	t.Helper()
	return f.connect(t, path, f.issue(t, devdomain.Leaf{ID: web}))
}

// dial makes a bare connection.
func dial(t testing.TB, path string) *net.UnixConn {
	t.Helper()
	conn, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() }) // some tests did already
	return conn.(*net.UnixConn)
}

// peers identifies everybody as answer says, and counts.
type peers struct {
	answer func() (identity.Caller, error)
	refuse error

	mu                      sync.Mutex
	accepted, asked, closed int
}

func newPeers(answer func() (identity.Caller, error)) *peers {
	return &peers{answer: answer}
}

func (p *peers) count(what *int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*what++
}

func (p *peers) Accept(*net.UnixConn) (identity.Connection, error) {
	p.count(&p.accepted)
	if p.refuse != nil {
		return nil, p.refuse
	}
	return peerConnection{p}, nil
}

type peerConnection struct{ peers *peers }

func (c peerConnection) Caller(context.Context) (identity.Caller, error) {
	c.peers.count(&c.peers.asked)
	return c.peers.answer()
}

func (c peerConnection) Close() error {
	c.peers.count(&c.peers.closed)
	return nil
}

// ids is what a caller of the Door must have.
func (f *fixture) ids() []spiffeid.ID { return []spiffeid.ID{web} }
