// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
)

// Users of the tests. Their numbers need no entry in /etc/passwd.
const (
	root     = 0
	app      = 1001 // the one that policies let in
	stranger = 1002 // the one that none lets in
	nobody   = 1003 // the one that gets no SPIFFE ID
)

// The exit codes of the command line.
const (
	done        = 0
	failed      = 1
	usage       = 2
	notFound    = 3
	denied      = 4
	unavailable = 5
	conflict    = 6
)

// session is a shell of one user.
type session struct {
	t       *testing.T
	uid     uint32
	environ []string
	input   string
}

// result is what became of a program.
type result struct {
	t        *testing.T
	command  string
	code     int
	out, err string
}

// with returns a session with something on standard input.
func (s session) with(input string) session {
	s.input = input
	return s
}

// without returns a session without an environment variable.
func (s session) without(variable string) session {
	var kept []string
	for _, entry := range s.environ {
		if !strings.HasPrefix(entry, variable+"=") {
			kept = append(kept, entry)
		}
	}
	s.environ = kept
	return s
}

// keyhole runs the binary.
func (s session) keyhole(args ...string) result {
	s.t.Helper()
	return s.run(run.keyhole, args...)
}

// sh runs a line of shell.
func (s session) sh(line string) result {
	s.t.Helper()
	return s.run("/bin/sh", "-c", line)
}

// cat reads a file with a program of the user's.
func (s session) cat(path string) result {
	s.t.Helper()
	return s.run("/bin/cat", path)
}

func (s session) run(program string, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	defer cancel()
	command := exec.CommandContext(ctx, program, args...)
	command.Env = append(slices.Clip(s.environ), raceOptions)
	command.Dir = "/"
	command.Stdin = strings.NewReader(s.input)
	var out, complaints bytes.Buffer
	command.Stdout, command.Stderr = &out, &complaints
	command.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if s.uid != root {
		command.SysProcAttr.Credential = &syscall.Credential{Uid: s.uid, Gid: s.uid}
	}
	err := command.Run()
	if ctx.Err() != nil {
		s.t.Fatalf("%s takes longer than %s", command, patience)
	}
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%s: %v", command, err)
	}
	r := result{s.t, command.String(), command.ProcessState.ExitCode(), out.String(), complaints.String()}
	if strings.Contains(r.err, "DATA RACE") {
		s.t.Errorf("%s:\n%s", r.command, r.err)
	}
	return r
}

// ok requires success, and returns what was written.
func (r result) ok() string {
	r.t.Helper()
	if r.code != done || r.err != "" {
		r.t.Fatalf("%s: exit code %d, %s", r.command, r.code, r.err)
	}
	return r.out
}

// says requires exactly this output.
func (r result) says(want string) {
	r.t.Helper()
	if got := r.ok(); got != want {
		r.t.Fatalf("%s: %q instead of %q", r.command, got, want)
	}
}

// shows requires words in the output.
func (r result) shows(words ...string) {
	r.t.Helper()
	containsAll(r.t, r.command, r.ok(), words...)
}

// fails requires an exit code, and an error in one line that has the words.
func (r result) fails(code int, words ...string) {
	r.t.Helper()
	if r.code != code {
		r.t.Fatalf("%s: exit code %d instead of %d: %s%s", r.command, r.code, code, r.out, r.err)
	}
	if r.out != "" {
		r.t.Errorf("%s failed and wrote %q", r.command, r.out)
	}
	line, rest, _ := strings.Cut(r.err, "\n")
	if !strings.HasPrefix(line, "keyhole: ") || rest != "" {
		r.t.Errorf("%s: the error is not one line: %q", r.command, r.err)
	}
	containsAll(r.t, r.command, r.err, words...)
}

// cannot requires that a program that is not ours failed for a reason.
func (r result) cannot(reason string) {
	r.t.Helper()
	if r.code == done || r.out != "" || !strings.Contains(r.err, reason) {
		r.t.Fatalf("%s: exit code %d, %q, %q; it should have failed with %q", r.command, r.code, r.out, r.err, reason)
	}
}

func containsAll(t *testing.T, what, text string, words ...string) {
	t.Helper()
	for _, word := range words {
		if !strings.Contains(text, word) {
			t.Errorf("%s: %q lacks %q", what, text, word)
		}
	}
}
