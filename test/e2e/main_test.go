// SPDX-License-Identifier: Apache-2.0

// Package e2e tests the built binary as its users meet it: agents in processes
// of their own, real users, real sockets, a real mount, and two trust domains.
// Nothing here looks inside the agent; what is asserted is what a user, an
// operator, or somebody who reads the files afterwards can see.
//
// The tests need root, /dev/fuse and the programs setpriv and unshare, and are
// skipped, loudly, where one is missing; with CI=true they fail. They run
// longer, with more rounds, when KEYHOLE_E2E_LONG is set.
package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"
)

// patience is how long a test waits for what must come. It is the length of a
// failure, never that of a success.
const patience = 60 * time.Second

// partVariable names the part that the test binary plays when it is started by
// a test, as another user.
const partVariable = "KEYHOLE_E2E_PART"

// raceOptions are for binaries that look for data races: without it they wait a
// second before they exit.
const raceOptions = "GORACE=atexit_sleep_ms=0"

// run is what all tests share, and none changes.
var run struct {
	dir      string // everything of this run lies in it
	keyhole  string // the binary
	problem  string // why nothing can be tested
	buildErr error
}

func TestMain(m *testing.M) {
	switch part := os.Getenv(partVariable); part {
	case "":
		os.Exit(testAll(m))
	case "opener":
		os.Exit(openAsTold())
	case "view":
		os.Exit(checkView())
	default:
		fmt.Fprintln(os.Stderr, "there is no part", part)
		os.Exit(2)
	}
}

// testAll runs the tests in a folder that is gone afterwards.
func testAll(m *testing.M) (code int) {
	if run.problem = missing(); run.problem != "" {
		return m.Run()
	}
	if err := removeLeftovers(); err != nil {
		fmt.Fprintln(os.Stderr, "cleaning up after a run that was killed:", err)
	}
	dir, release, err := newRunFolder()
	if err != nil {
		fmt.Fprintln(os.Stderr, "making a folder for the run:", err)
		return 1
	}
	defer func() {
		if err := release(); err != nil {
			fmt.Fprintln(os.Stderr, "removing the folder of the run:", err)
			code = max(code, 1)
		}
	}()
	run.dir, run.keyhole = dir, filepath.Join(dir, "keyhole")
	arguments := []string{"build", "-o", run.keyhole}
	if raceEnabled {
		arguments = append(arguments, "-race")
	}
	build := exec.Command("go", append(arguments, "github.com/keyhole-agent/keyhole/cmd/keyhole")...)
	build.Stdout, build.Stderr = os.Stdout, os.Stderr
	run.buildErr = build.Run()
	return m.Run()
}

// missing says what keeps the tests from running here, "" when nothing does.
func missing() string {
	if os.Geteuid() != 0 {
		return "mounting and changing users needs root: run the tests with sudo"
	}
	if _, err := os.Stat("/dev/fuse"); err != nil {
		return "/dev/fuse is missing: modprobe fuse, or start the container with --device /dev/fuse"
	}
	for _, program := range []string{"setpriv", "unshare"} {
		if _, err := exec.LookPath(program); err != nil {
			return program + " is missing: install util-linux"
		}
	}
	return ""
}

// begin starts a test, which runs beside others.
func begin(t *testing.T) {
	t.Helper()
	switch ci, _ := strconv.ParseBool(os.Getenv("CI")); {
	case run.problem != "" && ci:
		t.Fatal(run.problem)
	case run.problem != "":
		t.Skip("NOT TESTED: " + run.problem)
	case run.buildErr != nil:
		t.Fatal("building the binary: ", run.buildErr)
	}
	t.Parallel()
}

// rounds is how often something is repeated: few times, or, when asked to take
// long, many.
func rounds(few, many int) int {
	if os.Getenv("KEYHOLE_E2E_LONG") != "" {
		return many
	}
	return few
}
