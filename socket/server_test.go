// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bufio"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
)

func TestTheSocketsHaveTheirModesWhateverTheUmask(t *testing.T) {
	for _, umask := range []int{0o077, 0} {
		old := syscall.Umask(umask)
		f := start(t, nil)
		syscall.Umask(old)
		for path, want := range map[string]fs.FileMode{
			f.path:               fs.ModeSocket | 0o666,
			f.admin:              fs.ModeSocket | 0o600,
			filepath.Dir(f.path): fs.ModeDir | 0o755,
		} {
			info, err := os.Stat(path)
			if err != nil {
				t.Fatal(err)
			}
			if info.Mode() != want {
				t.Errorf("%s has the mode %s, want %s", path, info.Mode(), want)
			}
		}
		names(t, filepath.Dir(f.path), "admin.sock", "agent.sock")
		check(t, f.stopServer(t.Context()))
		names(t, filepath.Dir(f.path))
	}
}

// names checks what is in a folder.
func names(t *testing.T, folder string, want ...string) {
	t.Helper()
	entries, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, e := range entries {
		found = append(found, e.Name())
	}
	if strings.Join(found, " ") != strings.Join(want, " ") {
		t.Errorf("%s has %q, want %q", folder, found, want)
	}
}

// leaveSocket leaves a socket at path that nobody serves.
func leaveSocket(t *testing.T, path string) {
	t.Helper()
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	listener.SetUnlinkOnClose(false)
	if err := listener.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestASocketThatNobodyServesIsReplaced(t *testing.T) {
	f := start(t, func(c *socket.Config) {
		if err := os.Mkdir(filepath.Dir(c.Path), 0o755); err != nil {
			t.Fatal(err)
		}
		leaveSocket(t, c.Path)
	})
	if _, err := pb.NewSecretsClient(f.asWeb(t, f.path)).List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Error(err)
	}
}

func TestASecondServerIsToldThePidOfTheFirst(t *testing.T) {
	f := start(t, nil)
	second := f.config
	second.AdminPath = filepath.Join(filepath.Dir(f.path), "other.sock")
	_, err := socket.New(second)
	if !errors.Is(err, secret.ErrInUse) || !strings.Contains(err.Error(), strconv.Itoa(os.Getpid())) {
		t.Errorf("the error is %v", err)
	}
	if _, err := pb.NewSecretsClient(f.asWeb(t, f.path)).List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Errorf("the first one does not serve any more: %v", err)
	}
	names(t, filepath.Dir(f.path), "admin.sock", "agent.sock")
}

func TestAServerWhoseSecondSocketIsTakenLeavesNothing(t *testing.T) {
	f := start(t, nil)
	second := f.config
	second.Path = filepath.Join(filepath.Dir(f.path), "other.sock")
	if _, err := socket.New(second); !errors.Is(err, secret.ErrInUse) {
		t.Errorf("the error is %v", err)
	}
	names(t, filepath.Dir(f.path), "admin.sock", "agent.sock")
}

func TestOfServersThatStartAtOnceOneWins(t *testing.T) {
	f := start(t, nil)
	config := f.config
	config.Path, config.AdminPath = filepath.Join(shortDir(t), "agent.sock"), ""
	for range 20 {
		leaveSocket(t, config.Path)
		race(t, config)
		names(t, filepath.Dir(config.Path))
	}
}

// race starts several servers for the same socket.
func race(t *testing.T, config socket.Config) {
	t.Helper()
	var all sync.WaitGroup
	servers := make([]*socket.Server, 8)
	failures := make([]error, len(servers))
	for i := range servers {
		all.Go(func() { servers[i], failures[i] = socket.New(config) })
	}
	all.Wait()
	won := 0
	for i, s := range servers {
		if s == nil {
			if !errors.Is(failures[i], secret.ErrInUse) {
				t.Errorf("one failed with %v", failures[i])
			}
			continue
		}
		won++
		defer func() { check(t, s.Close(t.Context())) }()
	}
	if won != 1 {
		t.Errorf("%d of them think that they have the socket", won)
	}
	dial(t, config.Path)
}

func TestWhatIsNoSocketStays(t *testing.T) {
	f := start(t, nil)
	config := f.config
	config.AdminPath = ""
	config.Path = filepath.Join(filepath.Dir(f.path), "file")
	if err := os.WriteFile(config.Path, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := socket.New(config); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("the error is %v", err)
	}
	if text, err := os.ReadFile(config.Path); err != nil || string(text) != "precious" {
		t.Errorf("the file has %q: %v", text, err)
	}
}

func TestUnsuitablePathsAreRefused(t *testing.T) {
	f := start(t, nil)
	open := filepath.Join(filepath.Dir(f.path), "open")
	if err := errors.Join(os.Mkdir(open, 0o700), os.Chmod(open, 0o777)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"agent.sock", "/", filepath.Join(open, "agent.sock"), "/tmp/" + strings.Repeat("x", 103)} {
		config := f.config
		config.Path, config.AdminPath = path, ""
		if _, err := socket.New(config); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v", path, err)
		}
	}
	for name, config := range map[string]socket.Config{
		"no path":     {Refusals: f.door},
		"no door":     {Path: f.path, Refusals: f.door},
		"no statuses": {AdminPath: f.admin, Administration: f.door, Refusals: f.door},
		"no refusals": {Path: f.path, Secrets: f.door},
	} {
		if _, err := socket.New(config); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestCloseRemovesOnlyItsOwnSocket(t *testing.T) {
	f := start(t, nil)
	if err := errors.Join(os.Remove(f.path), os.WriteFile(f.path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	check(t, f.stopServer(t.Context()))
	names(t, filepath.Dir(f.path), "agent.sock")
}

func TestWhoSpeaksSomethingElseIsToldSo(t *testing.T) {
	f := start(t, nil)
	conn := dial(t, f.path)
	if _, err := io.WriteString(conn, "GET /v1/secrets HTTP/1.1\r\nHost: keyhole\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(t, answer.Body.Close()) }()
	// What was sent and not read makes a reset of the end of the answer.
	text, err := io.ReadAll(answer.Body)
	if answer.StatusCode != http.StatusBadRequest || !strings.Contains(string(text), "gRPC") || err != nil && !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("answered %s %q %v", answer.Status, text, err)
	}
}

func TestConnectionsThatDoNotSayWhoTheyAreAreClosed(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Limits.Handshake = 50 * time.Millisecond })
	for name, sent := range map[string]string{
		"silent":            "",
		"half a preface":    "PR",
		"only the preface":  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"half a handshake":  "\x16\x03\x01",
		"a broken one":      "\x16\x03\x01\x00\x01\x00",
		"garbage after PRI": "PRI garbage garbage garbage",
	} {
		conn := dial(t, f.path)
		if _, err := io.WriteString(conn, sent); err != nil {
			t.Fatal(err)
		}
		if _, err := io.Copy(io.Discard, conn); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestAConnectionWithoutRequestsIsClosed(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Limits.Idle = 50 * time.Millisecond })
	conn := f.connect(t, f.path, nil)
	conn.Connect()
	for _, state := range []connectivity.State{connectivity.Idle, connectivity.Connecting, connectivity.Ready} {
		if !conn.WaitForStateChange(t.Context(), state) {
			t.Fatal("the test ended first")
		}
	}
	if state := conn.GetState(); state != connectivity.Idle {
		t.Errorf("the connection is %s", state)
	}
}

func TestOneUserCannotTakeAllConnections(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Limits.Connections = 2 })
	first := dial(t, f.path)
	if _, err := io.WriteString(first, "PR"); err != nil {
		t.Fatal(err)
	}
	second := dial(t, f.path) // in the order of connecting
	if n, err := second.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Errorf("the second one got %d bytes, %v", n, err)
	}
	check(t, first.Close())
	// Its place becomes free as soon as the server sees that.
	health := healthpb.NewHealthClient(f.connect(t, f.path, nil))
	for {
		_, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{})
		if err == nil {
			break
		}
		if status.Code(err) != codes.Unavailable {
			t.Fatal(err)
		}
	}
}

func TestCloseWaitsForRequestsInFlight(t *testing.T) {
	f := start(t, nil)
	entered, release := make(chan struct{}), make(chan struct{})
	f.door.Fail = func(context.Context, string) error {
		close(entered)
		<-release
		return nil
	}
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	answered := make(chan error, 1)
	go func() {
		_, err := secrets.List(context.Background(), &pb.ListRequest{})
		answered <- err
	}()
	<-entered
	closed := make(chan error, 1)
	go func() { closed <- f.stopServer(context.Background()) }()
	select {
	case err := <-closed:
		t.Errorf("closed while a request was in flight: %v", err)
	default:
	}
	close(release)
	check(t, <-answered)
	check(t, <-closed)
}

func TestCloseEndsRequestsThatTakeTooLong(t *testing.T) {
	f := start(t, nil)
	entered := make(chan struct{})
	f.door.Fail = func(ctx context.Context, _ string) error {
		close(entered)
		<-ctx.Done()
		return ctx.Err()
	}
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	answered := make(chan error, 1)
	go func() {
		_, err := secrets.List(context.Background(), &pb.ListRequest{})
		answered <- err
	}()
	<-entered
	over, cancel := context.WithCancel(t.Context())
	cancel()
	check(t, f.stopServer(over))
	if err := <-answered; err == nil {
		t.Error("the request was answered")
	}
}

func TestCloseDoesNotWaitForThoseWhoWatch(t *testing.T) {
	f := start(t, nil)
	watch, err := healthpb.NewHealthClient(f.connect(t, f.path, nil)).Watch(t.Context(), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := watch.Recv(); err != nil {
		t.Fatal(err)
	}
	check(t, f.stopServer(context.Background()))
	for err == nil { // it may first be told that nothing is served
		_, err = watch.Recv()
	}
	if status.Code(err) != codes.Unavailable {
		t.Errorf("who watches ends with %v, and should come back", err)
	}
}

func TestAServerThatWasNeverServedCloses(t *testing.T) {
	f := start(t, nil)
	config := f.config
	config.Path, config.AdminPath = filepath.Join(shortDir(t), "a"), ""
	s, err := socket.New(config)
	if err != nil {
		t.Fatal(err)
	}
	check(t, s.Close(t.Context()))
	check(t, s.Serve())
}

func TestHealthSaysWhatItIsTold(t *testing.T) {
	f := start(t, nil)
	for _, path := range []string{f.path, f.admin} {
		health := healthpb.NewHealthClient(f.connect(t, path, nil))
		for _, serving := range []bool{false, true, false} {
			f.server.SetServing(serving)
			for _, service := range []string{"", "keyhole.v1.Secrets", "keyhole.v1.Admin"} {
				answer, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: service})
				if err != nil || (answer.GetStatus() == healthpb.HealthCheckResponse_SERVING) != serving {
					t.Errorf("%q when serving is %t: %v %v", service, serving, answer, err)
				}
			}
		}
		if _, err := health.Check(t.Context(), &healthpb.HealthCheckRequest{Service: "other"}); status.Code(err) != codes.NotFound {
			t.Errorf("of an unknown service: %v", err)
		}
	}
}
