// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"keyhole": func() { os.Exit(run()) }})
}

// TestScripts runs testdata/script. Beside testscript's own commands there are
//
//	dev [UID] DIR      starts keyhole dev, waits until it is ready, and sets its environment
//	serve LOG ARGS...  starts another keyhole that serves, and waits until it is ready
//	signal NAME WORDS  sends it HUP, and waits until its log has the words
//	halt [KILL]        ends it with SIGTERM, and requires exit code 0; or kills it
//	deafen             has nobody read its log any more
//	fails CODE ARGS... requires an exit code of keyhole, and an error in one line
//	as UID CODE ARGS.. runs a program as another user; "keyhole" is a copy that it may run
//	terminal DIALOG CODE ARGS...  runs keyhole on a terminal, see terminal_test.go
//
// and the condition [root].
func TestScripts(t *testing.T) {
	// t.TempDir is closed to other users, and too long for Unix sockets.
	root, err := os.MkdirTemp("", "kh") //nolint:usetesting // see above
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(root); err != nil {
			t.Error(err)
		}
	})
	public := filepath.Join(root, "keyhole")
	if err := errors.Join(os.Chmod(root, 0o755), copyProgram(public)); err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: "testdata/script", WorkdirRoot: root, RequireUniqueNames: true,
		Setup: func(env *testscript.Env) error {
			env.Setenv("PUBLIC", public)
			env.Values[served{}] = &server{}
			return nil
		},
		Condition: func(cond string) (bool, error) {
			if cond != "root" {
				return false, errors.New("unknown condition " + cond)
			}
			return os.Geteuid() == 0, nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"dev": startDev, "serve": serve, "signal": signalServer, "halt": haltServer, "deafen": deafenServer,
			"fails": fails, "as": runAs, "terminal": onTerminal,
		},
	})
}

// copyProgram copies the test's own binary, which is keyhole under that name.
func copyProgram(to string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	content, err := os.ReadFile(self)
	if err != nil {
		return err
	}
	return os.WriteFile(to, content, 0o755)
}

// served is the key of a script's server.
type served struct{}

// server is a keyhole that runs beside a script.
type server struct {
	command *exec.Cmd
	log     io.Closer
	lines   chan string // of its log
}

func theServer(ts *testscript.TestScript) *server { return ts.Value(served{}).(*server) }

// launch starts keyhole and reads its log until it has the word.
func (s *server) launch(ts *testscript.TestScript, log, until string, command *exec.Cmd) {
	if s.command != nil {
		ts.Fatalf("the script has a server already")
	}
	command.Dir = ts.MkAbs(".")
	if command.SysProcAttr == nil {
		command.SysProcAttr = &syscall.SysProcAttr{}
	}
	command.SysProcAttr.Pdeathsig = syscall.SIGTERM // if the tests time out, so that it unmounts
	pipe, err := command.StderrPipe()
	ts.Check(err)
	ts.Check(command.Start())
	s.command, s.log, s.lines = command, pipe, make(chan string, 10_000)
	ts.Defer(func() {
		if s.command != nil { // the script failed; SIGTERM, so that it unmounts
			_ = s.command.Process.Signal(syscall.SIGTERM)
			for range s.lines { // to the end: Wait would close the pipe
			}
			_ = s.command.Wait()
		}
	})
	file, err := os.Create(ts.MkAbs(log))
	ts.Check(err)
	go func() {
		defer close(s.lines)
		defer file.Close() // for people to read
		for lines := bufio.NewScanner(io.TeeReader(pipe, file)); lines.Scan(); {
			s.lines <- lines.Text()
		}
	}()
	s.await(ts, until)
}

// await reads the log until it has the words.
func (s *server) await(ts *testscript.TestScript, words string) {
	for line := range s.lines {
		ts.Logf("[log] %s", line)
		if strings.Contains(line, words) {
			return
		}
	}
	err := s.command.Wait()
	s.command = nil
	ts.Fatalf("it ended before its log had %q: %v", words, err)
}

func startDev(ts *testscript.TestScript, _ bool, args []string) {
	dir := ts.MkAbs(args[len(args)-1])
	command := exec.Command("keyhole", "dev", "--dir", dir)
	if len(args) == 2 {
		command = exec.Command(ts.Getenv("PUBLIC"), "dev", "--dir", dir)
		command.SysProcAttr = &syscall.SysProcAttr{Credential: credential(ts, args[0])}
	}
	command.Env = append(os.Environ(), "HOME="+ts.MkAbs("."))
	theServer(ts).launch(ts, "log", `"msg":"ready"`, command)
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	ts.Check(err)
	for line := range strings.Lines(string(env)) {
		name, value, _ := strings.Cut(strings.TrimPrefix(strings.TrimSpace(line), "export "), "=")
		ts.Setenv(name, strings.Trim(value, "'"))
	}
}

func serve(ts *testscript.TestScript, _ bool, args []string) {
	command := exec.Command("keyhole", args[1:]...)
	command.Env = append(os.Environ(), "SPIFFE_ENDPOINT_SOCKET="+ts.Getenv("SPIFFE_ENDPOINT_SOCKET"))
	theServer(ts).launch(ts, args[0], `"msg":"ready"`, command)
}

func signalServer(ts *testscript.TestScript, _ bool, args []string) {
	s := theServer(ts)
	signals := map[string]syscall.Signal{"HUP": syscall.SIGHUP}
	ts.Check(s.command.Process.Signal(signals[args[0]]))
	s.await(ts, args[1])
}

func deafenServer(ts *testscript.TestScript, _ bool, _ []string) {
	s := theServer(ts)
	ts.Check(s.log.Close())
	for range s.lines {
	}
}

func haltServer(ts *testscript.TestScript, _ bool, args []string) {
	s := theServer(ts)
	if len(args) == 1 && args[0] == "KILL" {
		ts.Check(s.command.Process.Kill())
	} else {
		ts.Check(s.command.Process.Signal(syscall.SIGTERM))
	}
	for line := range s.lines { // to the end: Wait would close the pipe
		ts.Logf("[log] %s", line)
	}
	err := s.command.Wait()
	s.command = nil
	if len(args) == 0 && err != nil {
		ts.Fatalf("it was stopped: %v", err)
	}
}

// fails runs keyhole and requires the error that every failure has.
func fails(ts *testscript.TestScript, _ bool, args []string) {
	expect(ts, args[0], ts.Exec("keyhole", args[1:]...))
}

func runAs(ts *testscript.TestScript, _ bool, args []string) {
	command := args[2]
	if command == "keyhole" {
		command = ts.Getenv("PUBLIC")
	}
	setpriv := append([]string{"--reuid", args[0], "--regid", args[0], "--clear-groups", "--", command}, args[3:]...)
	err := ts.Exec("setpriv", setpriv...)
	if args[2] != "keyhole" {
		requireCode(ts, args[1], err)
		return
	}
	expect(ts, args[1], err)
}

// expect requires the exit code, and that keyhole's errors are one line each.
func expect(ts *testscript.TestScript, code string, err error) {
	requireCode(ts, code, err)
	if code == "0" {
		return
	}
	var said strings.Builder
	for line := range strings.Lines(ts.ReadFile("stderr")) {
		if !strings.HasPrefix(line, `{"time":`) && !strings.HasPrefix(line, "debug: ") { // the log of an agent
			said.WriteString(line)
		}
	}
	if text := said.String(); !strings.HasPrefix(text, "keyhole: ") || strings.Index(text, "\n") != len(text)-1 {
		ts.Fatalf("the error is not one line: %q", text)
	}
}

func requireCode(ts *testscript.TestScript, code string, err error) {
	got := 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		got = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if strconv.Itoa(got) != code {
		ts.Fatalf("exit code %d instead of %s", got, code)
	}
}

func credential(ts *testscript.TestScript, uid string) *syscall.Credential {
	id, err := strconv.ParseUint(uid, 10, 32)
	ts.Check(err)
	return &syscall.Credential{Uid: uint32(id), Gid: uint32(id)}
}
