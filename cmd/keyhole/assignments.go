// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/keyhole-agent/keyhole/secret"
)

// readAssignments turns what a user typed into values:
//
//	key=text   the text
//	key=@FILE  what is in the file
//	key=@-     what comes from standard input, for one key at most
//	key        asked for on the terminal, without showing it
//
// Nothing is trimmed. A text that begins with @ is given as a file or on
// standard input.
func (p *program) readAssignments(ctx context.Context, args []string) (secret.Values, error) {
	collected := map[string][]byte{}
	defer func() {
		for _, value := range collected {
			clear(value)
		}
	}()
	stdinFor := ""
	for i, arg := range args {
		key, text, assigned := strings.Cut(arg, "=")
		_, err := secret.ParseKey(key)
		switch _, doubled := collected[key]; {
		// What has no key may be a value that lost it: it is not repeated.
		case !assigned && err != nil:
			return secret.Values{}, usagef("argument %d is neither KEY=VALUE nor a KEY to ask for", i+2)
		case !assigned && !p.interactive():
			return secret.Values{}, usagef("argument %d has no value, and there is no terminal to ask for one; write KEY=@FILE, or KEY=@- for standard input", i+2)
		case err != nil:
			return secret.Values{}, usageError{err}
		case doubled:
			return secret.Values{}, usagef("the key %s is given twice", key)
		case text == "@-" && stdinFor != "":
			return secret.Values{}, usagef("both %s and %s are to come from standard input; give one of them as a file", stdinFor, key)
		case text == "@-":
			stdinFor = key
		}
		value, err := p.readAssignment(ctx, key, text, assigned)
		if err != nil {
			return secret.Values{}, err
		}
		collected[key] = value
	}
	values, err := secret.NewValues(collected)
	if err != nil {
		return secret.Values{}, usageError{err}
	}
	return values, nil
}

func (p *program) readAssignment(ctx context.Context, key, text string, assigned bool) ([]byte, error) {
	file, fromFile := strings.CutPrefix(text, "@")
	switch {
	case !assigned:
		value, err := p.readHidden(ctx, key+": ")
		if err == nil && len(value) == 0 {
			err = usagef("no value for %s was typed; write %s= for an empty one", key, key)
		}
		return value, err
	case !fromFile:
		return []byte(text), nil
	case file == "-":
		return readValue(p.stdin(ctx, "the value of "+key), "standard input")
	case file == "":
		return nil, usagef("%s=@ lacks the name of a file", key)
	}
	opened, err := os.Open(filepath.Clean(file))
	if err != nil {
		return nil, usagef("reading the value of %s: %w", key, err)
	}
	value, err := readValue(input{ctx, opened}, file)
	return value, errors.Join(err, opened.Close())
}

// readValue reads at most what a value may have. It leaves nothing behind of
// what it does not return.
func readValue(r io.Reader, name string) ([]byte, error) {
	buffer := make([]byte, secret.MaxValueBytes+1)
	defer clear(buffer)
	n, err := io.ReadFull(r, buffer)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("reading %s: %w", name, err)
	}
	if n == len(buffer) {
		return nil, fmt.Errorf("%w: %s has more than %d bytes", secret.ErrTooLarge, name, secret.MaxValueBytes)
	}
	return bytes.Clone(buffer[:n]), nil
}

func parsePath(text string) (secret.Path, error) {
	path, err := secret.ParsePath(text)
	if err != nil {
		return path, usageError{err}
	}
	return path, nil
}
