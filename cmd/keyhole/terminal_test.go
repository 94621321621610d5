// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"golang.org/x/sys/unix"
)

// onTerminal runs keyhole with a terminal for standard input and standard error.
// The file DIALOG has one line for each thing to do on it,
//
//	QUESTION|ANSWER
//
// which waits until the terminal shows the question, and types the answer:
// followed by Enter, unless it is ^C or ^D. The file terminal has afterwards what
// was shown.
func onTerminal(ts *testscript.TestScript, _ bool, args []string) {
	keyboard, screen, err := openTerminal()
	ts.Check(err)
	defer keyboard.Close() // nothing is left to be read
	command := exec.Command("keyhole", args[2:]...)
	command.Dir = ts.MkAbs(".")
	command.Env = os.Environ()
	for _, name := range []string{"KEYHOLE_SOCKET", "KEYHOLE_ADMIN_SOCKET", "SPIFFE_ENDPOINT_SOCKET"} {
		command.Env = append(command.Env, name+"="+ts.Getenv(name))
	}
	command.Stdin, command.Stderr, command.Stdout = screen, screen, ts.Stdout()
	command.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	ts.Check(command.Start())
	defer command.Process.Kill() //nolint:errcheck // it has ended, unless the script failed
	ts.Check(screen.Close())

	shown := talk(ts, keyboard, ts.ReadFile(args[0]))
	err = command.Wait()
	ts.Logf("[terminal]\n%s", shown)
	ts.Check(os.WriteFile(ts.MkAbs("terminal"), []byte(shown), 0o600))
	requireCode(ts, args[1], err)
}

// talk follows the dialog, and returns all that was shown until the end.
func talk(ts *testscript.TestScript, terminal *os.File, dialog string) string {
	var shown strings.Builder
	seen := 0
	for line := range strings.Lines(dialog) {
		question, answer, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "|")
		for !strings.Contains(shown.String()[seen:], question) {
			if !readSome(ts, terminal, &shown) {
				ts.Fatalf("it ended without %q: %q", question, shown.String())
			}
		}
		seen = shown.Len()
		typed := map[string]string{"^C": "\x03", "^D": "\x04"}[answer]
		if typed == "" {
			typed = answer + "\n"
		}
		_, err := io.WriteString(terminal, typed)
		ts.Check(err)
	}
	for readSome(ts, terminal, &shown) {
	}
	return strings.ReplaceAll(shown.String(), "\r\n", "\n")
}

// readSome returns false when the other side is closed, which is EIO. A program
// that neither says nor asks anything is stuck.
func readSome(ts *testscript.TestScript, terminal *os.File, shown *strings.Builder) bool {
	events := []unix.PollFd{{Fd: int32(terminal.Fd()), Events: unix.POLLIN}}
	n, err := unix.Poll(events, int(time.Minute/time.Millisecond))
	if errors.Is(err, unix.EINTR) {
		return true
	}
	if ts.Check(err); n == 0 {
		ts.Fatalf("it is stuck after %q", shown.String())
	}
	buffer := make([]byte, 4096)
	n, err = terminal.Read(buffer)
	shown.Write(buffer[:n])
	return err == nil
}

// openTerminal makes a pseudo-terminal (pty(7)).
func openTerminal() (keyboard, screen *os.File, err error) {
	keyboard, err = os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return nil, nil, err
	}
	master := int(keyboard.Fd())
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, nil, fmt.Errorf("unlocking the terminal: %w", err)
	}
	number, err := unix.IoctlGetInt(master, unix.TIOCGPTN)
	if err != nil {
		return nil, nil, fmt.Errorf("asking for the terminal's number: %w", err)
	}
	screen, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	return keyboard, screen, err
}
