// SPDX-License-Identifier: Apache-2.0

// Package bench measures the agent against the floors that it stands on, as
// ratios inside one run.
//
// A floor is the same work without what the agent adds: a bare gRPC echo under
// Get, the same filesystem without checks under an open, the vault without gRPC
// under a Put, ten rules under a hundred thousand. In each round both sides do
// their work for as long, in random order, and their quotient is one sample;
// what counts is the median of the samples. So what disturbs the machine for
// longer than a round disturbs both sides, and what is shorter is outvoted.
// Rates by themselves say little: they depend on the machine and its mood.
//
// -benchtime Nx makes N rounds. At the end stands a table with all that was
// measured, and a line for each gate; a gate that does not hold fails the run.
// -profile DIR leaves CPU profiles of the agent's side there.
//
// The opens need root, for the mount and for a user of their own, and are
// skipped, loudly, without; with CI=true that fails.
package bench

import (
	"flag"
	"fmt"
	"os"
	"strconv"
	"testing"
)

// profiles is where CPU profiles go; "" for none.
var profiles = flag.String("profile", "", "write CPU profiles of the agent's side into this `folder`")

// results is what all benchmarks of the run found.
var results report

func TestMain(m *testing.M) {
	if part := os.Getenv(partVariable); part != "" {
		if err := play(part); err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", part, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	if !results.print(os.Stdout) {
		code = max(code, 1)
	}
	os.Exit(code)
}

// requireRoot skips what cannot be measured without, loudly.
func requireRoot(b *testing.B) {
	b.Helper()
	problem := ""
	if os.Geteuid() != 0 {
		problem = "mounting and changing users needs root: run it with sudo"
	} else if _, err := os.Stat("/dev/fuse"); err != nil {
		problem = "/dev/fuse is missing: modprobe fuse, or start the container with --device /dev/fuse"
	}
	switch ci, _ := strconv.ParseBool(os.Getenv("CI")); {
	case problem != "" && ci:
		b.Fatal(problem)
	case problem != "":
		b.Skip("NOT MEASURED: " + problem)
	}
}

func check(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
