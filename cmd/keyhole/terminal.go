// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// interactive tells whether there is a person to ask.
func (p *program) interactive() bool {
	return term.IsTerminal(int(p.in.Fd())) && term.IsTerminal(int(p.err.Fd()))
}

// stdin is standard input, as far as it comes before ctx ends. A person who is
// to type it is told so.
func (p *program) stdin(ctx context.Context, what string) io.Reader {
	if p.interactive() {
		fmt.Fprintf(p.err, "Type %s, and end with Ctrl-D on a line of its own:\n", what)
	}
	return input{ctx, p.in}
}

// input reads a file until its context ends: a read of a terminal or a pipe
// waits, and signals do not end it.
type input struct {
	ctx  context.Context
	file *os.File
}

// Read waits for something to read, or for the end of the context, whose error
// it returns then.
func (i input) Read(b []byte) (int, error) {
	if err := await(i.ctx, i.file); err != nil {
		return 0, err
	}
	return i.file.Read(b)
}

// await returns nil when a read of file would not wait.
func await(ctx context.Context, file *os.File) (err error) {
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("preparing to wait for input: %w", err)
	}
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(woken)
		// The counter is 0, so there is room for 1.
		_, _ = unix.Write(wake, binary.NativeEndian.AppendUint64(nil, 1))
	})
	defer func() {
		if !stop() {
			<-woken
		}
		err = errors.Join(err, unix.Close(wake))
	}()
	events := []unix.PollFd{{Fd: int32(file.Fd()), Events: unix.POLLIN}, {Fd: int32(wake), Events: unix.POLLIN}}
	for {
		_, err := unix.Poll(events, -1)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("waiting for input: %w", err)
		case events[1].Revents != 0:
			return ctx.Err()
		default:
			return nil
		}
	}
}

// maxTyped is the longest line that a terminal takes, with its end (termios(3),
// canonical mode).
const maxTyped = 4096

// readHidden asks for one line that is not shown as it is typed; an end of input
// is an empty one. The caller clears it.
func (p *program) readHidden(ctx context.Context, prompt string) (_ []byte, err error) {
	terminal := int(p.in.Fd())
	before, err := unix.IoctlGetTermios(terminal, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("hiding what is typed: %w", err)
	}
	// Before the prompt: who sees it may type.
	quiet := *before
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	quiet.Iflag |= unix.ICRNL
	if err := unix.IoctlSetTermios(terminal, unix.TCSETS, &quiet); err != nil {
		return nil, fmt.Errorf("hiding what is typed: %w", err)
	}
	defer func() { err = errors.Join(err, unix.IoctlSetTermios(terminal, unix.TCSETS, before)) }()
	fmt.Fprint(p.err, prompt)
	defer fmt.Fprintln(p.err)
	line := make([]byte, maxTyped)
	defer clear(line)
	n, err := input{ctx, p.in}.Read(line) // one line at most
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return bytes.Clone(bytes.TrimSuffix(line[:n], []byte("\n"))), nil
}

// confirm asks a question that is answered with yes or no, and takes everything
// else for a no.
func (p *program) confirm(ctx context.Context, question string) (bool, error) {
	if _, err := fmt.Fprintf(p.err, "%s [y/N] ", question); err != nil {
		return false, err
	}
	answer, err := bufio.NewReader(input{ctx, p.in}).ReadString('\n')
	if err != nil {
		fmt.Fprintln(p.err) // nobody pressed Enter
	}
	if err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	switch strings.ToLower(strings.TrimSpace(answer)) {
	case "y", "yes":
		return true, nil
	}
	return false, nil
}
