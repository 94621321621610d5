// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/fuse/fusetest"
)

// The test binary plays three parts: the tests, the daemon that serves a mount
// (a process must not use a mount that it serves itself), and the users of it.
// The other two are told what to do over a socket, descriptor 3.
const partVariable = "KEYHOLE_FUSE_TEST_PART"

func TestMain(m *testing.M) {
	switch os.Getenv(partVariable) {
	case "daemon":
		play(&daemon{source: &fusetest.Source{}, users: &fusetest.Users{}})
	case "user":
		play(&user{files: map[int]int{}})
	default:
		os.Exit(m.Run())
	}
}

// play serves calls until the tests hang up.
func play(part any) {
	server := rpc.NewServer()
	socket, err := net.FileConn(os.NewFile(3, "socket"))
	if err := errors.Join(err, server.RegisterName("Part", part)); err != nil {
		panic(err)
	}
	server.ServeConn(socket)
	if d, ok := part.(*daemon); ok {
		var nothing struct{}
		_ = d.Unmount(struct{}{}, &nothing) // nobody is left to be told of an error
	}
}

// process is a daemon or a user, seen from the tests.
type process struct {
	t       testing.TB
	command *exec.Cmd
	client  *rpc.Client
}

// start starts a part as the given user.
func start(t testing.TB, part string, uid, gid uint32) *process {
	t.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	command := exec.Command("/proc/self/exe")
	command.Env = append(os.Environ(), partVariable+"="+part, "GORACE="+os.Getenv("GORACE")+" atexit_sleep_ms=0")
	command.ExtraFiles = []*os.File{theirs}
	command.Stdout, command.Stderr = os.Stdout, os.Stderr
	command.Dir = "/"
	if uid != 0 || gid != 0 {
		command.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: gid}}
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	p := &process{t: t, command: command, client: rpc.NewClient(conn)}
	t.Cleanup(func() {
		p.client.Close()
		p.command.Wait() //nolint:errcheck // it may have been killed
	})
	return p
}

// call makes the process do something, and fails the test if that fails.
func (p *process) call(method string, arguments, reply any) {
	p.t.Helper()
	if err := p.try(method, arguments, reply); err != nil {
		p.t.Fatalf("%s: %v", method, err)
	}
}

func (p *process) try(method string, arguments, reply any) error {
	var nothing struct{}
	if arguments == nil {
		arguments = nothing
	}
	if reply == nil {
		reply = &nothing
	}
	return p.client.Call("Part."+method, arguments, reply)
}

// kill ends the process as a crash would.
func (p *process) kill() {
	p.t.Helper()
	if err := p.command.Process.Kill(); err != nil {
		p.t.Fatal(err)
	}
	p.command.Wait() //nolint:errcheck // it was killed
}

// mounted is a daemon with a mount.
type mounted struct {
	*process
	Settings
}

// Settings say how the daemon mounts.
type Settings struct {
	Dir, Private, SelfLink string
	Deadline, Idle         time.Duration
	MaxViews               int
	Anybody                bool // identify nobody: the floor of benchmarks
	UID                    uint32
}

// folder returns an empty folder that every user may enter.
func folder(t testing.TB) string {
	t.Helper()
	dir := t.TempDir()
	for _, path := range []string{filepath.Dir(dir), dir} {
		if err := os.Chmod(path, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

// places are where a daemon mounts below dir.
func places(dir string) Settings {
	return Settings{
		Dir: filepath.Join(dir, "fs"), Private: filepath.Join(dir, "private"), SelfLink: filepath.Join(dir, "secrets"),
	}
}

// requireMount skips a test where it cannot run, loudly.
func requireMount(t testing.TB) {
	t.Helper()
	problem := ""
	if os.Geteuid() != 0 {
		problem = "mounting and changing users needs root: run the tests with sudo"
	} else if _, err := os.Stat("/dev/fuse"); err != nil {
		problem = "/dev/fuse is missing: modprobe fuse, or start the container with --device /dev/fuse"
	}
	switch ci, _ := strconv.ParseBool(os.Getenv("CI")); {
	case problem != "" && ci:
		t.Fatal(problem)
	case problem != "":
		t.Skip("NOT TESTED: " + problem)
	}
}

// mount starts a daemon with a mount in a folder of its own.
func mount(t testing.TB, change ...func(*Settings)) *mounted {
	t.Helper()
	requireMount(t)
	s := places(folder(t))
	for _, f := range change {
		f(&s)
	}
	t.Cleanup(func() {
		for _, path := range []string{s.Dir, filepath.Join(s.Private, "fs")} { // of a daemon that was killed
			_ = unix.Unmount(path, unix.MNT_DETACH) // usually it is gone
		}
	})
	m := &mounted{process: start(t, "daemon", 0, 0), Settings: s}
	m.call("Mount", s, nil)
	return m
}

// put writes a secret and waits until the kernel knows.
func (m *mounted) put(path string, values ...string) {
	m.t.Helper()
	content := map[string]string{}
	for i := 0; i < len(values); i += 2 {
		content[values[i]] = values[i+1]
	}
	m.call("Put", PutArguments{path, content}, nil)
	m.settle()
}

// settle waits until the kernel was told of all changes.
func (m *mounted) settle() {
	m.t.Helper()
	m.call("Settle", nil, nil)
}

// unmount closes the filesystem, and fails the test when anything is left.
func (m *mounted) unmount() {
	m.t.Helper()
	m.call("Unmount", nil, nil)
}

// self is the path of a file in the caller's own view.
func (m *mounted) self(path string) string { return filepath.Join(m.SelfLink, path) }

// user starts a process of that user, with the same number as group.
func (m *mounted) user(uid uint32) *process {
	m.t.Helper()
	return start(m.t, "user", uid, uid)
}

// background is what calls inside the other processes are bounded by: far more
// than they need, so that a test that hangs ends with an error.
func background() (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.Background(), 30*time.Second)
}

func text(value any) string {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Sprint(value)
	}
	return string(data)
}
