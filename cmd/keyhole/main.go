// SPDX-License-Identifier: Apache-2.0

// Keyhole is the agent and its command line, in one binary.
//
// The command line prints answers to standard output, in the form that -o names,
// and everything else to standard error. A command that fails says so in one
// line: what failed, why, and what to do about it; its exit code is one of the
// table in exit.go. Values of secrets are in answers to secret get alone, and in
// no error. A command gives up when the agent is silent for too long.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"
)

// version is set when a release is linked.
var version = "development"

func main() {
	os.Exit(run())
}

func run() int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal ends the process at once
	p := &program{
		in: os.Stdin, out: os.Stdout, err: os.Stderr,
		environ: os.Environ(), version: version, now: time.Now, patience: defaultPatience,
	}
	return p.run(ctx, os.Args[1:])
}
