// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.uber.org/goleak"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// compiled is the actor's binary, made once by whoever needs it first.
var compiled = sync.OnceValues(func() ([]byte, error) {
	folder, err := os.MkdirTemp("", "keyhole-actor-")
	if err != nil {
		return nil, err
	}
	defer func() { _ = os.RemoveAll(folder) }()
	binary := filepath.Join(folder, "actor")
	gcc := exec.CommandContext(context.Background(), "gcc", "-static", "-O1", "-pthread", "-Wall", "-o", binary, "testdata/actor.c")
	if output, err := gcc.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compiling the actor: %w\n%s", err, output)
	}
	return os.ReadFile(binary)
})

// program puts a copy of the actor where every user can run it: another file
// for the kernel, each time.
func program(t testing.TB) string {
	t.Helper()
	binary, err := compiled()
	must(t, err)
	path := filepath.Join(folder(t), "actor")
	must(t, os.WriteFile(path, binary, 0o755))
	return path
}

// folder is a temporary folder that every user can enter.
func folder(t testing.TB) string {
	t.Helper()
	path := t.TempDir()
	for _, p := range []string{path, filepath.Dir(path)} {
		must(t, os.Chmod(p, 0o755))
	}
	return path
}

// actor is a running testdata/actor.c.
type actor struct {
	t      testing.TB
	cmd    *exec.Cmd
	pid    int
	input  io.WriteCloser
	output *bufio.Reader
	ended  sync.Once
}

// start runs a program as an actor with the given uid and gid; our own for 0.
func start(t testing.TB, path string, uid uint32) *actor {
	t.Helper()
	cmd := exec.CommandContext(context.Background(), path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // to end all of its children
	if uid != 0 && uid != uint32(os.Getuid()) {
		cmd.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	input, err := cmd.StdinPipe()
	must(t, err)
	output, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	a := &actor{t: t, cmd: cmd, pid: cmd.Process.Pid, input: input, output: bufio.NewReader(output)}
	t.Cleanup(a.end)
	a.expect("ready")
	return a
}

// end kills the actor with its children, and reaps it: its number is free then.
func (a *actor) end() {
	a.ended.Do(func() {
		_ = syscall.Kill(-a.pid, syscall.SIGKILL) // gone already is fine
		_ = a.cmd.Wait()                          // killed
	})
}

// kill ends the actor, and not its children.
func (a *actor) kill() {
	a.t.Helper()
	must(a.t, a.cmd.Process.Kill())
	_, err := a.cmd.Process.Wait()
	must(a.t, err)
}

// leave ends the actor, whose connection lives on in a child.
func (a *actor) leave() {
	a.t.Helper()
	heir := a.tell("leave", "heir")
	a.t.Cleanup(func() { must(a.t, syscall.Kill(heir, syscall.SIGKILL)) })
	a.ended.Do(func() { must(a.t, a.cmd.Wait()) })
}

// tell gives a command, and returns the number in the answer, which must begin
// with the given word.
func (a *actor) tell(command, answer string) int {
	a.t.Helper()
	_, err := io.WriteString(a.input, command+"\n")
	must(a.t, err)
	return a.expect(answer)
}

func (a *actor) expect(answer string) int {
	a.t.Helper()
	line, err := a.output.ReadString('\n')
	if err != nil {
		a.t.Fatalf("waiting for %q from the actor: %v", answer, err)
	}
	word, number, _ := strings.Cut(strings.TrimSpace(line), " ")
	if word != answer {
		a.t.Fatalf("the actor says %q instead of %q", line, answer)
	}
	n, _ := strconv.Atoi(number) // 0 where the answer has none
	return n
}

// broker is a scripted identity.Attestor: what it cannot be made to do on
// demand is to fail.
type broker struct {
	mu     sync.Mutex
	script func(ctx context.Context, pid int) (identity.Grant, error)
	asked  atomic.Int64
}

func (b *broker) Attest(ctx context.Context, pid int) (identity.Grant, error) {
	b.asked.Add(1)
	b.mu.Lock()
	script := b.script
	b.mu.Unlock()
	if script == nil {
		return grant(fmt.Sprintf("/pid/%d", pid)), nil
	}
	return script(ctx, pid)
}

func (b *broker) says(script func(ctx context.Context, pid int) (identity.Grant, error)) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.script = script
}

func (b *broker) isDown() {
	b.says(func(context.Context, int) (identity.Grant, error) {
		return identity.Grant{}, fmt.Errorf("no broker: %w", secret.ErrUnavailable)
	})
}

var domain = spiffeid.RequireTrustDomainFromString("dev.keyhole.test")

var epoch = time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)

// grant entitles to IDs with the given paths for an hour after epoch.
func grant(paths ...string) identity.Grant {
	g := identity.Grant{Expires: epoch.Add(time.Hour)}
	for _, path := range paths {
		g.IDs = append(g.IDs, spiffeid.RequireFromPath(domain, path))
	}
	return g
}

// clock stands at epoch until it is moved.
type clock struct{ offset atomic.Int64 }

func (c *clock) now() time.Time       { return epoch.Add(time.Duration(c.offset.Load())) }
func (c *clock) set(at time.Duration) { c.offset.Store(int64(at)) }

// stage is a table with its broker and clock.
type stage struct {
	*Table
	broker *broker
	clock  *clock
}

func newStage(t testing.TB, k kernel, config Config) *stage {
	t.Helper()
	s := &stage{broker: new(broker), clock: new(clock)}
	config.Attestor, config.Now = s.broker, s.clock.now
	if config.TrustDomains == nil {
		config.TrustDomains = []spiffeid.TrustDomain{domain}
	}
	table, err := New(config)
	must(t, err)
	table.kernel = k
	s.Table = table
	t.Cleanup(func() { must(t, table.Close()) })
	return s
}

// onEachKernel runs a test with PIDFD_GET_INFO, and as if the kernel had none.
func onEachKernel(t *testing.T, test func(t *testing.T, k kernel)) {
	t.Helper()
	_, err := compiled() // and what the runtime opens for pipes
	must(t, err)
	for name, k := range map[string]kernel{"pidfd": {}, "proc": {procOnly: true}} {
		t.Run(name, func(t *testing.T) {
			before := descriptors(t)
			t.Cleanup(func() {
				if after := descriptors(t); after != before {
					t.Errorf("%d descriptors are open after the test, %d were before", after, before)
				}
			})
			test(t, k)
		})
	}
}

func descriptors(t testing.TB) int {
	t.Helper()
	open, err := os.ReadDir("/proc/self/fd")
	must(t, err)
	return len(open)
}

// listen accepts what the actors connect to.
func listen(t testing.TB) (path string, accept func() *net.UnixConn) {
	t.Helper()
	path = filepath.Join(folder(t), "socket")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	must(t, err)
	must(t, os.Chmod(path, 0o777))
	t.Cleanup(func() { must(t, listener.Close()) })
	return path, func() *net.UnixConn {
		conn, err := listener.AcceptUnix()
		must(t, err)
		t.Cleanup(func() { must(t, conn.Close()) })
		return conn
	}
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func asRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root, to run programs as other users")
	}
}
