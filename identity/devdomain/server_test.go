// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"go.uber.org/goleak"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/secret"
)

// childAddress makes the test binary ask the Workload API there who it is,
// instead of running tests.
const childAddress = "KEYHOLE_TEST_WORKLOAD_API"

func TestMain(m *testing.M) {
	if address := os.Getenv(childAddress); address != "" {
		if err := json.NewEncoder(os.Stdout).Encode(askAsChild(address)); err != nil {
			panic(err)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

// answers is what a child was told.
type answers struct {
	X509, JWT []string
	Code      codes.Code // why there is no X.509-SVID
	Error     string
}

func askAsChild(address string) answers {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(address))
	if err != nil {
		return answers{Error: err.Error()}
	}
	defer func() { _ = client.Close() }()
	var told answers
	x509, err := client.FetchX509SVIDs(ctx)
	if err != nil {
		return answers{Code: status.Code(err), Error: err.Error()}
	}
	for _, svid := range x509 {
		told.X509 = append(told.X509, svid.ID.String())
	}
	jwt, err := client.FetchJWTSVIDs(ctx, jwtsvid.Params{Audience: "tests"})
	if err != nil {
		return answers{Code: status.Code(err), Error: err.Error()}
	}
	for _, svid := range jwt {
		told.JWT = append(told.JWT, svid.ID.String())
	}
	return told
}

// askAs runs the test binary, or a copy of it at path, as a user of that number.
func askAs(t *testing.T, s *Server, path string, user uint32) answers {
	t.Helper()
	if path == "" {
		path = "/proc/self/exe" // in the child: what the parent runs, wherever it lies
	}
	child := exec.CommandContext(t.Context(), path)
	child.Env = []string{childAddress + "=" + s.WorkloadAddress(), "GORACE=atexit_sleep_ms=0"}
	child.Dir = "/"
	child.Stderr = t.Output()
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	text, err := child.Output()
	if err != nil {
		t.Fatalf("asking as user %d: %v", user, err)
	}
	var told answers
	if err := json.Unmarshal(text, &told); err != nil {
		t.Fatalf("asking as user %d: %v: %s", user, err, text)
	}
	return told
}

// needRoot skips tests that run processes of other users.
func needRoot(t *testing.T) {
	t.Helper()
	switch {
	case os.Getuid() == 0:
	case os.Getenv("CI") == "true":
		t.Fatal("this test starts processes of other users: run it as root")
	default:
		t.Skip("SKIPPED: this test starts processes of other users, and needs root")
	}
}

// folder returns a folder that every user can reach.
func folder(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	for _, each := range []string{dir, filepath.Dir(dir)} {
		if err := os.Chmod(each, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func start(t *testing.T, config Config) *Server {
	t.Helper()
	if config.Dir == "" {
		config.Dir = folder(t)
	}
	s, err := New(config)
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

func dev(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + DefaultTrustDomain + path)
}

// log collects what a server says.
type log struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *log) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *log) has(part string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return bytes.Contains(l.text.Bytes(), []byte(part))
}

func (l *log) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

func TestAProcessIsItsUserUnlessARuleSaysOtherwise(t *testing.T) {
	needRoot(t)
	s := start(t, Config{Rules: []Rule{
		{IDs: []spiffeid.ID{dev("/web")}, UID: new(uint32(1002))},
		{IDs: []spiffeid.ID{dev("/batch")}, UID: new(uint32(1003)), GID: new(uint32(9))},
		{IDs: []spiffeid.ID{dev("/b"), dev("/a")}, UID: new(uint32(1004))},
	}})
	for user, want := range map[uint32][]string{
		1001: {"spiffe://dev.keyhole.test/uid/1001"},
		1002: {"spiffe://dev.keyhole.test/web"},
		1003: {"spiffe://dev.keyhole.test/uid/1003"}, // the group differs
		1004: {"spiffe://dev.keyhole.test/a", "spiffe://dev.keyhole.test/b"},
	} {
		told := askAs(t, s, "", user)
		if !slices.Equal(told.X509, want) || !slices.Equal(told.JWT, want) {
			t.Errorf("user %d was told %+v, want %s", user, told, want)
		}
	}
}

func TestRulesThatDisagreeGiveNothingAndWarn(t *testing.T) {
	needRoot(t)
	said := new(log)
	s := start(t, Config{Logger: said.logger(), Rules: []Rule{
		{IDs: []spiffeid.ID{dev("/web")}, UID: new(uint32(1001))},
		{IDs: []spiffeid.ID{dev("/db")}, GID: new(uint32(1001))},
	}})
	if told := askAs(t, s, "", 1001); told.Code != codes.PermissionDenied {
		t.Errorf("the process was told %+v", told)
	}
	if !said.has("rules give different IDs to user 1001") {
		t.Errorf("no warning in %s", said.text.String())
	}
	if told := askAs(t, s, "", 1002); len(told.X509) != 1 {
		t.Errorf("another process was told %+v", told)
	}
}

func TestRulesThatAgreeAreNoConflict(t *testing.T) {
	needRoot(t)
	s := start(t, Config{Rules: []Rule{
		{IDs: []spiffeid.ID{dev("/web")}, UID: new(uint32(1001))},
		{IDs: []spiffeid.ID{dev("/web")}, GID: new(uint32(1001))},
	}})
	if told := askAs(t, s, "", 1001); !slices.Equal(told.X509, []string{"spiffe://dev.keyhole.test/web"}) {
		t.Errorf("the process was told %+v", told)
	}
}

func TestAnExecutableIsKnownByPathAndContent(t *testing.T) {
	needRoot(t)
	program := filepath.Join(folder(t), "program")
	sum := copySelf(t, program)
	wrong := slices.Clone(sum)
	wrong[0] ^= 1
	other := program + "-copied"
	copySelf(t, other)
	for name, test := range map[string]struct {
		rule Rule
		run  string
		hit  bool
	}{
		"path":                           {Rule{Executable: program}, program, true},
		"another path":                   {Rule{Executable: program}, other, false},
		"content":                        {Rule{SHA256: sum}, program, true},
		"content, wherever it lies":      {Rule{SHA256: sum}, other, true},
		"other content":                  {Rule{SHA256: wrong}, program, false},
		"path with other content":        {Rule{Executable: program, SHA256: wrong}, program, false},
		"path and content":               {Rule{Executable: program, SHA256: sum}, program, true},
		"path and content, another user": {Rule{Executable: program, SHA256: sum, UID: new(uint32(7))}, program, false},
	} {
		t.Run(name, func(t *testing.T) {
			test.rule.IDs = []spiffeid.ID{dev("/program")}
			s := start(t, Config{Rules: []Rule{test.rule}})
			want := "spiffe://dev.keyhole.test/uid/1001"
			if test.hit {
				want = "spiffe://dev.keyhole.test/program"
			}
			if told := askAs(t, s, test.run, 1001); !slices.Equal(told.X509, []string{want}) {
				t.Errorf("the process was told %+v, want %s", told, want)
			}
		})
	}
}

// copySelf copies the test binary and returns the copy's SHA-256.
func copySelf(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, content, 0o755); err != nil {
		t.Fatal(err)
	}
	return sha256Of(content)
}

func TestTheServersOwnProcessHasTheConfiguredID(t *testing.T) {
	self := dev("/keyhole")
	s := start(t, Config{Self: self, Rules: []Rule{{IDs: []spiffeid.ID{dev("/root")}, UID: new(uint32(os.Getuid()))}}})
	if told := askAsChild(s.WorkloadAddress()); !slices.Equal(told.X509, []string{self.String()}) {
		t.Errorf("the process was told %+v", told)
	}
}

func TestTheSocketsHaveTheirModes(t *testing.T) {
	dir := filepath.Join(folder(t), "new")
	start(t, Config{Dir: dir})
	for name, want := range map[string]os.FileMode{".": 0o755, workloadSocket: 0o666, brokerSocket: 0o600} {
		found, err := os.Stat(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		if found.Mode().Perm() != want {
			t.Errorf("%s has mode %v, want %v", name, found.Mode().Perm(), want)
		}
	}
}

func TestAFolderMayBeRelativeAndHaveAnyName(t *testing.T) {
	t.Chdir(t.TempDir())
	s := start(t, Config{Dir: "50% of what? #1", BrokerCallers: []spiffeid.ID{dev("/keyhole")}})
	if told := askAsChild(s.WorkloadAddress()); len(told.X509) != 1 {
		t.Errorf("at %s: %+v", s.WorkloadAddress(), told)
	}
	if _, err := firstX509(withHeader(t.Context()), askBroker(t, s, dev("/keyhole")), reference(t, os.Getpid())); err != nil {
		t.Errorf("at %s: %v", s.BrokerAddress(), err)
	}
}

func TestASecondServerInTheSameFolderIsRefused(t *testing.T) {
	first := start(t, Config{})
	_, err := New(Config{Dir: first.config.Dir})
	if !errors.Is(err, secret.ErrInUse) {
		t.Fatalf("got %v", err)
	}
	if told := askAsChild(first.WorkloadAddress()); len(told.X509) != 1 {
		t.Errorf("the first server does not answer any more: %+v", told)
	}
}

func TestAnAbandonedSocketIsReplacedAndAnythingElseIsNot(t *testing.T) {
	dir := folder(t)
	path := filepath.Join(dir, workloadSocket)
	old, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	old.SetUnlinkOnClose(false)
	if err := old.Close(); err != nil {
		t.Fatal(err)
	}
	s := start(t, Config{Dir: dir})
	if told := askAsChild(s.WorkloadAddress()); len(told.X509) != 1 {
		t.Errorf("no answer on the new socket: %+v", told)
	}

	dir = folder(t)
	if err := os.WriteFile(filepath.Join(dir, brokerSocket), []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := New(Config{Dir: dir}); !errors.Is(err, secret.ErrInUse) {
		t.Errorf("a file in the way: %v", err)
	}
	if text, err := os.ReadFile(filepath.Join(dir, brokerSocket)); err != nil || string(text) != "precious" {
		t.Errorf("the file is now %q, %v", text, err)
	}
}

func TestAStoppedServerLeavesNoSocketAndCanStartAgain(t *testing.T) {
	s := start(t, Config{})
	for range 2 {
		if err := s.Stop(WorkloadAPI); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Lstat(filepath.Join(s.config.Dir, workloadSocket)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	for range 2 {
		if err := s.Start(WorkloadAPI); err != nil {
			t.Fatal(err)
		}
	}
	if told := askAsChild(s.WorkloadAddress()); len(told.X509) != 1 {
		t.Errorf("no answer after the restart: %+v", told)
	}
}

func TestItSaysLoudlyThatItIsForDevelopment(t *testing.T) {
	said := new(log)
	start(t, Config{Logger: said.logger()})
	if !said.has("DEVELOPMENT TRUST DOMAIN") || !said.has("level=WARN") {
		t.Errorf("it said %s", said.text.String())
	}
}

func TestAConfigurationThatMakesNoSenseIsRefused(t *testing.T) {
	foreign := spiffeid.RequireFromString("spiffe://example.org/a")
	for name, config := range map[string]Config{
		"no folder":         {},
		"foreign self":      {Dir: t.TempDir(), Self: foreign},
		"foreign broker":    {Dir: t.TempDir(), BrokerID: foreign},
		"a moment's SVIDs":  {Dir: t.TempDir(), SVIDLifetime: time.Millisecond},
		"rule about nobody": {Dir: t.TempDir(), Rules: []Rule{{IDs: []spiffeid.ID{dev("/a")}}}},
		"foreign rule":      {Dir: t.TempDir(), Rules: []Rule{{IDs: []spiffeid.ID{foreign}, UID: new(uint32(1))}}},
	} {
		if s, err := New(config); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
			if err == nil {
				_ = s.Close()
			}
		}
	}
}
