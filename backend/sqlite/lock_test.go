// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func TestASecondOpenNamesTheFirst(t *testing.T) {
	path := newPath(t)
	b := openStore(t, path)
	_, err := Open(Config{Path: path})
	if !errors.Is(err, secret.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", os.Getpid())) {
		t.Errorf("Open: %v", err)
	}
	mustCommit(t, b, putting("a", nil)) // the first one did not notice
	closeNow(t, b)
	closeNow(t, openStore(t, path))
}

func TestAFailedOpenLetsGoOfTheLock(t *testing.T) {
	path := newPath(t)
	for range 2 {
		if _, err := Open(Config{Path: path, MustExist: true}); !errors.Is(err, secret.ErrNotFound) {
			t.Fatalf("Open: %v", err)
		}
	}
}

// holderEnvironment tells a child which store to hold open.
const holderEnvironment = "KEYHOLE_SQLITE_HOLD"

func TestTheLockOfAKilledProcessIsFree(t *testing.T) {
	if path := os.Getenv(holderEnvironment); path != "" {
		b := openStore(t, path)
		mustCommit(t, b, putting("a", []byte("written by the holder")))
		fmt.Println("held")
		select {}
	}
	path := newPath(t)
	child := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$", "-test.count=1")
	child.Env = append(os.Environ(), holderEnvironment+"="+path)
	out, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if line != "held\n" {
		t.Fatalf("the holder said %q, %v", line, err)
	}
	_, err = Open(Config{Path: path})
	if !errors.Is(err, secret.ErrInUse) || !strings.Contains(err.Error(), fmt.Sprintf("process %d", child.Process.Pid)) {
		t.Errorf("Open: %v", err)
	}
	if err := child.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := child.Wait(); err == nil {
		t.Error("the holder ended by itself")
	}
	b := openStore(t, path)
	if !exists(t, b, "a") {
		t.Error("what the killed process committed is gone")
	}
	if info, err := os.Stat(path + "-wal"); err != nil || info.Size() != 0 {
		t.Errorf("what was recovered is not checkpointed, and so perhaps not synced: %v, %v", info, err)
	}
}
