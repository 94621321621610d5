// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/keyhole-agent/keyhole/socket/client"
)

// usageError is a command that was typed wrongly.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

// usageArgs makes a wrong number of arguments a usage error.
func usageArgs(check cobra.PositionalArgs) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if err := check(cmd, args); err != nil {
			return usagef("%w; usage: %s", err, cmd.UseLine())
		}
		return nil
	}
}

// noSuchCommand refuses the arguments of a command that only has others below
// it.
func noSuchCommand(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	cmd.SuggestionsMinimumDistance = 2
	next := "see " + cmd.CommandPath() + " --help"
	if near := cmd.SuggestionsFor(args[0]); len(near) > 0 {
		next = "did you mean " + strings.Join(near, " or ") + "?"
	}
	return usagef("%s has no command %q; %s", cmd.CommandPath(), args[0], next)
}

// flagError makes a wrong flag a usage error. It does not repeat what was glued
// to an unknown one, which may be a password that begins with a dash.
func flagError(cmd *cobra.Command, err error) error {
	if unknown, ok := errors.AsType[*pflag.NotExistError](err); ok {
		name := "--" + unknown.GetSpecifiedName()
		if unknown.GetSpecifiedShortnames() != "" {
			name = "-" + unknown.GetSpecifiedName()
		}
		return usagef("there is no flag %s; see %s --help (what begins with a dash and is no flag comes after --)", name, cmd.CommandPath())
	}
	return usagef("%w; see %s --help", err, cmd.CommandPath())
}

// advised adds what to do next to errors of one kind.
func advised(err, kind error, advice string) error {
	if errors.Is(err, kind) {
		return fmt.Errorf("%w; %s", err, advice)
	}
	return err
}

// oneLine is a text without what would break the line, or command the terminal.
func oneLine(text string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return ' '
		}
		return r
	}, strings.ReplaceAll(text, "\n", "; "))
}

// explainError writes how an error came about: the request it answers, and what
// wraps what.
func explainError(w io.Writer, err error) {
	if answer, ok := errors.AsType[*client.Error](err); ok {
		fmt.Fprintf(w, "debug: request %q, reason %q, gRPC code %s; the agent's log and audit log have the request\n",
			answer.Request, answer.Reason, answer.Code)
	}
	explainWrapped(w, err, "")
}

func explainWrapped(w io.Writer, err error, indent string) {
	fmt.Fprintf(w, "debug: %s%T: %s\n", indent, err, oneLine(err.Error()))
	switch wrapper := err.(type) { //nolint:errorlint // it looks at each link of the chain
	case interface{ Unwrap() error }:
		if inner := wrapper.Unwrap(); inner != nil {
			explainWrapped(w, inner, indent+"  ")
		}
	case interface{ Unwrap() []error }:
		for _, inner := range wrapper.Unwrap() {
			explainWrapped(w, inner, indent+"  ")
		}
	}
}
