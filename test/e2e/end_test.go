// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// squat starts a process of a user that stands in a folder of the mount and has
// a file of it open, until the test ends. It reads the file again when told to.
func squat(t *testing.T, d *daemon, uid uint32, path, key string) (again func() string) {
	t.Helper()
	const script = `cd "$1" && exec 3<"$2" && echo there && while read -r _; do cat "$2" 2>&1 && echo; done`
	process := exec.Command("/bin/sh", "-c", script, "sh", d.path("secrets", path), key)
	process.Dir = "/"
	process.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL,
	}
	tell, err := process.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = tell.Close()
		_ = process.Wait() // its last reading may have failed
	})
	answers := bufio.NewScanner(out)
	if !answers.Scan() || answers.Text() != "there" {
		t.Fatalf("a user did not get into %s: %q", path, answers.Text())
	}
	return func() string {
		t.Helper()
		if _, err := tell.Write([]byte("\n")); err != nil {
			t.Fatal(err)
		}
		if !answers.Scan() {
			t.Fatal("the user is gone: ", answers.Err())
		}
		return answers.Text()
	}
}

func TestAnAgentEndsThoughItsFilesAreInUse(t *testing.T) {
	begin(t)
	for name, signal := range map[string]syscall.Signal{"terminated": syscall.SIGTERM, "interrupted": syscall.SIGINT} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			d := startDev(t, filepath.Join(folder(t), "d"))
			d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
			d.apply(appRead)
			again := squat(t, d, app, "db/creds", "password")
			if got := again(); got != "x" {
				t.Fatalf("before the end: %s", got)
			}
			d.signal(signal)
			if code := d.wait(); code != done {
				t.Errorf("the exit code is %d", code)
			}
			nothingIsLeft(t, d)
			if got := again(); got == "x" {
				t.Error("without an agent a file is opened")
			}
			d = startDev(t, d.dir)
			d.as(app).cat(d.file("db/creds", "password")).says("x")
		})
	}
}

// A mount of a killed agent that is in use is replaced as well.
func TestAMountIsReplacedThoughItIsInUse(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.apply(appRead)
	again := squat(t, d, app, "db/creds", "password")
	d.kill()
	containsAll(t, "opening a file of a killed agent", strings.ToLower(again()), "not connected")
	d = startDev(t, d.dir)
	d.as(app).cat(d.file("db/creds", "password")).says("x")
	d.stop()
	nothingIsLeft(t, d)
}

func TestStatusWaitsForTheAgent(t *testing.T) {
	begin(t)
	dir := filepath.Join(folder(t), "d")
	shell := session{t: t, environ: []string{
		"PATH=" + os.Getenv("PATH"), "KEYHOLE_SOCKET=" + filepath.Join(dir, "agent.sock"),
		"KEYHOLE_ADMIN_SOCKET=" + filepath.Join(dir, "admin.sock"),
	}}
	shell.keyhole("status").fails(unavailable, filepath.Join(dir, "agent.sock"))
	shell.keyhole("secret", "list").fails(unavailable, filepath.Join(dir, "agent.sock"))
	shell.keyhole("status", "--wait", "10ms").fails(unavailable, "waiting for the agent")
	answer := make(chan result, 1)
	go func() { answer <- shell.keyhole("status", "--wait", "60s") }()
	d := startDev(t, dir)
	(<-answer).shows("keyhole ", d.dir)
}
