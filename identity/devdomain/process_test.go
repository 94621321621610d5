// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity/process"
)

// runAs starts a process of the user that lives until the test ends.
func runAs(t *testing.T, user uint32) int {
	t.Helper()
	needRoot(t)
	child := exec.Command("cat") // waits for its input to end
	child.Dir = "/"
	child.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: user, Gid: user}}
	input, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = input.Close()
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	})
	return child.Process.Pid
}

// clock is the system's, moved.
type clock struct {
	mu     sync.Mutex
	offset time.Duration
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return time.Now().Add(c.offset)
}

func (c *clock) forward(by time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.offset += by
}

func TestAProcessThatIsNoLongerHeldGetsNothing(t *testing.T) {
	s := start(t, Config{})
	p, err := process.Open(runAs(t, 1001))
	if err != nil {
		t.Fatal(err)
	}
	held := hold(p)
	now, _ := s.current()
	if ids := s.entitled(now, held); !slices.Equal(ids, []spiffeid.ID{dev("/uid/1001")}) {
		t.Errorf("while it is held: %s", ids)
	}
	held.release()
	held.release()
	if ids := s.entitled(now, held); len(ids) != 0 {
		t.Errorf("afterwards: %s", ids)
	}
}

func TestClosedConnectionsLeaveNoProcessHeld(t *testing.T) {
	before := heldProcesses(t)
	s, err := New(Config{Dir: folder(t)})
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if told := askAsChild(s.WorkloadAddress()); len(told.X509) != 1 {
			t.Errorf("told %+v", told)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if after := heldProcesses(t); after != before {
		t.Errorf("%d pidfds are open, before there were %d", after, before)
	}
}

// heldProcesses counts our pidfds.
func heldProcesses(t *testing.T) int {
	t.Helper()
	const folder = "/proc/self/fd/"
	files, err := os.ReadDir(folder)
	if err != nil {
		t.Fatal(err)
	}
	count := 0
	for _, file := range files {
		// One of them was the folder's own, and is gone.
		if target, err := os.Readlink(folder + file.Name()); err == nil && strings.Contains(target, "pidfd") {
			count++
		}
	}
	return count
}
