// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc/codes"
	"pgregory.net/rapid"

	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
)

// inProcess runs one command line, and returns what it wrote.
func inProcess(t testing.TB, environ []string, args ...string) (code int, out, said string) {
	t.Helper()
	p, read := newProgram(t, environ)
	code = p.run(t.Context(), args)
	out, said = read()
	return code, out, said
}

// newProgram returns a program without input, and what reads its output.
func newProgram(t testing.TB, environ []string) (p *program, read func() (out, said string)) {
	t.Helper()
	open := func(path string) *os.File {
		file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { file.Close() }) // read already
		return file
	}
	dir := t.TempDir()
	p = &program{
		in: open(os.DevNull), out: open(filepath.Join(dir, "out")), err: open(filepath.Join(dir, "err")),
		environ: environ, version: "test", now: time.Now, patience: time.Minute,
	}
	return p, func() (string, string) {
		out, err := os.ReadFile(p.out.Name())
		said, err2 := os.ReadFile(p.err.Name())
		if err := errors.Join(err, err2); err != nil {
			t.Fatal(err)
		}
		return string(out), string(said)
	}
}

// silentAgent listens, and answers nothing.
func silentAgent(t testing.TB) []string {
	t.Helper()
	dir, err := os.MkdirTemp("", "kh") //nolint:usetesting // t.TempDir is too long for a Unix socket
	if err != nil {
		t.Fatal(err)
	}
	environ := []string{}
	for _, socket := range []struct{ variable, name string }{
		{client.SocketVariable, "agent.sock"}, {client.AdminSocketVariable, "admin.sock"}, {client.WorkloadAPIVariable, "workload.sock"},
	} {
		path := filepath.Join(dir, socket.name)
		listener, err := net.Listen("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { listener.Close() }) // nobody was served
		if socket.variable == client.WorkloadAPIVariable {
			path = "unix://" + path
		}
		environ = append(environ, socket.variable+"="+path)
	}
	t.Cleanup(func() { os.RemoveAll(dir) }) // sockets only
	return environ
}

const onePolicy = `
policies:
  - name: reader
    spiffe_id: spiffe://example.org/a
    path: a
    permissions: [read]
`

func TestEveryCommandGivesUpOnAnAgentThatDoesNotAnswer(t *testing.T) {
	environ := silentAgent(t)
	file := filepath.Join(t.TempDir(), "policies.yaml")
	if err := os.WriteFile(file, []byte(onePolicy), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, args := range []string{
		"status", "secret put a b=hunter2", "secret get a", "secret list", "secret metadata a", "secret delete a",
		"secret purge --dry-run", "secret purge --force", "policy list", "policy get a", "policy delete a",
		"policy explain spiffe://example.org/a read a", "policy apply -f " + file,
	} {
		for name, environ := range map[string][]string{"svid": environ, "peer": environ[:2]} {
			t.Run(name+" "+args, func(t *testing.T) {
				t.Parallel()
				p, read := newProgram(t, environ)
				p.patience = 30 * time.Millisecond
				code := p.run(t.Context(), strings.Fields(args))
				_, said := read()
				if code != exitUnavailable || !strings.HasPrefix(said, "keyhole: unavailable: the agent has not answered for 30ms; ") || strings.Contains(said, "hunter2") {
					t.Errorf("exit code %d: %s", code, said)
				}
			})
		}
	}
}

func TestWaitingForAnAgentEnds(t *testing.T) {
	environ := silentAgent(t)[:2]
	code, _, said := inProcess(t, environ, "status", "--wait", "30ms")
	if code != exitUnavailable || !strings.Contains(said, "waiting for the agent: unavailable") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

func TestAnInterruptEndsACommand(t *testing.T) {
	p, read := newProgram(t, silentAgent(t)[:2])
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	code := p.run(ctx, []string{"secret", "get", "a"})
	if _, said := read(); code != exitFailed || !strings.HasPrefix(said, "keyhole: interrupted (") {
		t.Errorf("exit code %d: %s", code, said)
	}
}

func TestAnInterruptEndsTheWaitForInput(t *testing.T) {
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close() // a pipe
	defer writer.Close() // a pipe
	ctx, cancel := context.WithCancel(t.Context())
	from := input{ctx, reader}
	if _, err := io.WriteString(writer, "typed"); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 10)
	if n, err := from.Read(buffer); string(buffer[:n]) != "typed" || err != nil {
		t.Errorf("%q, %v", buffer[:n], err)
	}
	go cancel()
	if n, err := from.Read(buffer); n != 0 || !errors.Is(err, context.Canceled) {
		t.Errorf("%d, %v", n, err)
	}
}

func TestExitCodes(t *testing.T) {
	for err, code := range map[error]int{
		errors.New("something"): exitFailed,
		usagef("a flag"):        exitUsage,
		secret.ErrNotFound:      3, secret.ErrExpired: 3,
		secret.ErrDenied: 4, secret.ErrUnauthenticated: 4,
		secret.ErrSealed: 5, secret.ErrUnavailable: 5, secret.ErrLimited: 5, context.DeadlineExceeded: 5, silence{time.Second}: 5,
		secret.ErrConflict: 6, secret.ErrExists: 6,
		secret.ErrInvalid: 2, secret.ErrTooLarge: 2,
		secret.ErrTampered: 1, secret.ErrNewerFormat: 1, secret.ErrInUse: 1,
	} {
		wrapped := advised(fmt.Errorf("doing something: %w", errors.Join(err, errors.New("and more"))), err, "do something else")
		if got := exitCode(wrapped); got != code {
			t.Errorf("%v: exit code %d, not %d", err, got, code)
		}
		if line := oneLine(wrapped.Error()); !strings.HasSuffix(line, "; do something else") {
			t.Error(line)
		}
	}
}

// TestNoArgumentOfPutIsRepeated: whatever a value looks like, and whatever else
// is wrong, an error does not show it.
func TestNoArgumentOfPutIsRepeated(t *testing.T) {
	const value = "hunter2"
	rapid.Check(t, func(r *rapid.T) {
		around := rapid.StringMatching(`[-@ =a-z\x00-\x1f/."'$]{0,3}`)
		hidden := around.Draw(r, "before") + value + around.Draw(r, "after")
		form := rapid.SampledFrom([]string{"key=", "a b=", "=", "key=x ", "-", "--", "", "@", "key=\n"}).Draw(r, "form")
		if form == "--" || strings.Contains(hidden, "=") && (form == "" || form == "@") {
			r.Skip("a flag, or a key, has a name, which errors may show")
		}
		if strings.HasPrefix(hidden, "@") && strings.HasPrefix(form, "key=") || strings.HasPrefix(hidden, "-") && form == "-" {
			r.Skip("the name of a file, or of a flag")
		}
		args := []string{"secret", "put", "db/creds", form + hidden}
		if rapid.Bool().Draw(r, "twice") {
			args = append(args, form+hidden)
		}
		_, out, said := inProcess(t, []string{client.SocketVariable + "=/nonexistent/a", client.AdminSocketVariable + "=/nonexistent/b"}, args...)
		if strings.Contains(out+said, value) {
			r.Fatalf("%q: %s%s", args, out, said)
		}
	})
}

func TestEveryCommandExplainsItself(t *testing.T) {
	p, _ := newProgram(t, nil)
	var walk func(*cobra.Command)
	walk = func(cmd *cobra.Command) {
		if cmd.Short == "" || strings.HasSuffix(cmd.Short, ".") || cmd.Args == nil {
			t.Errorf("%s: %q, arguments checked: %t", cmd.CommandPath(), cmd.Short, cmd.Args != nil)
		}
		cmd.Flags().VisitAll(func(f *pflag.Flag) {
			if f.Usage == "" {
				t.Errorf("%s --%s has no help", cmd.CommandPath(), f.Name)
			}
		})
		for _, child := range cmd.Commands() {
			walk(child)
		}
	}
	walk(p.root())
}

func TestDebugShowsTheRequestAndWhatWrapsWhat(t *testing.T) {
	var written strings.Builder
	cause := errors.New("the cause\nof it")
	explainError(&written, fmt.Errorf("doing: %w", errors.Join(&client.Error{Reason: "R", Message: "refused", Request: "12ab", Code: codes.Aborted}, cause)))
	for _, want := range []string{
		"debug: request \"12ab\", reason \"R\", gRPC code Aborted; ", "debug: *fmt.wrapError: doing: refused; the cause; of it\n",
		"debug:     *client.Error: refused\n", "debug:     *errors.errorString: the cause; of it\n",
	} {
		if !strings.Contains(written.String(), want) {
			t.Errorf("%q lacks %q", written.String(), want)
		}
	}
}

func TestTheUsersOwnAgentIsPreferred(t *testing.T) {
	own := filepath.Join(t.TempDir(), "agent.sock")
	if got := firstThere(own, "system"); got != "system" {
		t.Error(got)
	}
	if err := os.WriteFile(own, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := firstThere(own, "system"); got != own {
		t.Error(got)
	}
}

func TestToStopAnAgentThatStartsIsNoFailure(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	p, read := newProgram(t, nil)
	code := p.run(ctx, []string{"dev", "--dir", filepath.Join(dir, "d")})
	if _, said := read(); code != exitDone || strings.Contains(said, "keyhole: ") {
		t.Errorf("exit code %d: %s", code, said)
	}
	if err := stoppedEarly(t.Context(), context.Canceled); err == nil {
		t.Error("a failure is hidden")
	}
	if err := stoppedEarly(ctx, secret.ErrInUse); err == nil {
		t.Error("a failure is hidden")
	}
}
