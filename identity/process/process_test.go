// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// identified opens the process of a thread, as OpenThread does.
func (k kernel) identified(tid int) (*Process, error) {
	t, err := k.caller(uint32(tid))
	if err != nil {
		return nil, err
	}
	return orNothing(k.openCaller(tid, t))
}

func denied(t *testing.T, p *Process, err error, why string) {
	t.Helper()
	if p != nil {
		p.Close()
	}
	if !errors.Is(err, secret.ErrDenied) || !strings.Contains(err.Error(), why) {
		t.Fatalf("got %v, want a denial that says %q", err, why)
	}
}

func TestAProcessIsDescribed(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		path := program(t)
		a := start(t, path, 0)
		a.tell("group 4242", "done")
		a.tell("uid 1001", "done")
		p, err := k.identified(a.pid)
		must(t, err)
		defer p.Close()
		info := p.Info()
		if info.PID != a.pid || info.UID != 1001 || info.GID != 0 || info.Executable != path {
			t.Errorf("described as %+v", info)
		}
		if (info.Cgroup == 0) != k.procOnly {
			t.Errorf("cgroup %d", info.Cgroup)
		}
		if groups, err := p.Groups(); err != nil || !slices.Equal(groups, []uint32{4242}) {
			t.Errorf("groups %v, %v", groups, err)
		}
		if again, err := p.Generation(); err != nil || again != p.Opened() {
			t.Errorf("an unchanged process is another generation: %+v and %+v, %v", again, p.Opened(), err)
		}
	})
}

func TestTheExportedFunctionsFindTheSameProcess(t *testing.T) {
	path, accept := listen(t)
	a := start(t, program(t), 0)
	a.tell("connect "+path, "done")
	byPID, err := Open(a.pid)
	must(t, err)
	defer byPID.Close()
	byThread, err := OpenThread(uint32(a.tell("thread", "thread")))
	must(t, err)
	defer byThread.Close()
	byPeer, err := PeerOf(accept())
	must(t, err)
	defer byPeer.Close()
	if byPID.Opened() != byThread.Opened() || byThread.Opened() != byPeer.Opened() {
		t.Errorf("generations %+v, %+v and %+v", byPID.Opened(), byThread.Opened(), byPeer.Opened())
	}
}

func TestASecondThreadIsItsProcess(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		a := start(t, program(t), 0)
		p, err := k.identified(a.tell("thread", "thread"))
		must(t, err)
		defer p.Close()
		if p.Info().PID != a.pid {
			t.Errorf("the thread is of process %d, want %d", p.Info().PID, a.pid)
		}
	})
}

func TestAThreadIsNotOpenedAsAProcess(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		a := start(t, program(t), 0)
		p, err := orNothing(k.open(a.tell("thread", "thread")))
		denied(t, p, err, "pidfd")
	})
}

func TestNobodyIsDenied(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		for _, c := range []struct {
			name string
			tid  int
			why  string
		}{
			{"thread 0", 0, "outside of our pid namespace"},
			{"a negative thread", 1 << 31, "outside of our pid namespace"},
			{"no thread", 1<<31 - 1, "no such"},
			{"ourselves", os.Getpid(), "the agent itself"},
		} {
			t.Run(c.name, func(t *testing.T) {
				p, err := k.identified(c.tid)
				denied(t, p, err, c.why)
			})
		}
	})
}

func TestAKernelThreadIsDenied(t *testing.T) {
	text, err := os.ReadFile("/proc/2/stat")
	if err != nil {
		t.Skip("no kernel threads to be seen")
	}
	if s, err := parseStat(text); err != nil || !s.kernelThread {
		t.Skip("process 2 is no kernel thread here")
	}
	onEachKernel(t, func(t *testing.T, k kernel) {
		p, err := k.identified(2)
		denied(t, p, err, "kernel thread")
	})
}

func TestOurselvesMayBeOpened(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		p, err := k.open(os.Getpid())
		must(t, err)
		defer p.Close()
		if p.Info().UID != uint32(os.Getuid()) {
			t.Errorf("our own uid is %d", p.Info().UID)
		}
	})
}

func TestASetUIDProgramIsDenied(t *testing.T) {
	asRoot(t)
	for _, change := range []string{"euid 1001", "fsuid 1001", "fsgid 1001"} {
		t.Run(change, func(t *testing.T) {
			onEachKernel(t, func(t *testing.T, k kernel) {
				a := start(t, program(t), 0)
				a.tell(change, "done")
				p, err := k.identified(a.pid)
				denied(t, p, err, "ids differ")
			})
		})
	}
}

func TestAThreadWithOtherIDsThanItsProcessIsDenied(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		a := start(t, program(t), 0)
		p, err := k.identified(a.tell("thread 1001", "thread"))
		denied(t, p, err, "other ids than the process")
	})
}

func TestAThreadOfAnotherProcessDoesNotBelong(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		path := program(t)
		p, err := k.open(start(t, path, 0).pid)
		must(t, err)
		defer p.Close()
		if err := k.belongs(start(t, path, 0).pid, p); !errors.Is(err, secret.ErrDenied) {
			t.Errorf("got %v", err)
		}
	})
}

func TestIDsWithoutMeaningAreDenied(t *testing.T) {
	for name, i := range map[string]ids{
		"uid": {ruid: invalidID, euid: invalidID, fsuid: invalidID},
		"gid": {rgid: invalidID, egid: invalidID, fsgid: invalidID},
	} {
		if err := i.check(); !errors.Is(err, secret.ErrDenied) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestWhatChangesAGeneration(t *testing.T) {
	asRoot(t)
	other := program(t)
	for _, c := range []struct{ change, answer string }{
		{"exec " + other, "ready"},
		{"uid 1001", "done"},
		{"group 7", "done"},
	} {
		t.Run(c.change, func(t *testing.T) {
			onEachKernel(t, func(t *testing.T, k kernel) {
				a := start(t, program(t), 0)
				p, err := k.identified(a.pid)
				must(t, err)
				defer p.Close()
				a.tell(c.change, c.answer)
				if after, err := p.Generation(); err != nil || after == p.Opened() {
					t.Errorf("after %q the generation is the same; error %v", c.change, err)
				}
			})
		})
	}
}

func TestAnExecutableChangedInPlaceIsAnotherGeneration(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		path := program(t)
		p, err := k.open(start(t, path, 0).pid)
		must(t, err)
		defer p.Close()
		must(t, os.Chmod(path, 0o700))
		if after, err := p.Generation(); err != nil || after == p.Opened() {
			t.Errorf("the generation is the same; error %v", err)
		}
	})
}

func TestAChildBetweenVforkAndExecIsAProcessOfItsOwn(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		a := start(t, program(t), 0)
		parent, err := k.identified(a.pid)
		must(t, err)
		defer parent.Close()
		pid := a.tell("vfork "+program(t), "borrower")
		child, err := k.identified(pid)
		must(t, err)
		defer child.Close()
		if child.Info().PID != pid || child.Opened().file != parent.Opened().file {
			t.Errorf("before exec: %+v", child.Info())
		}
		if child.Opened() == parent.Opened() {
			t.Error("the child is the same generation as its parent")
		}
		a.tell("go", "ready")
		after, err := child.Generation()
		if err != nil || after == child.Opened() {
			t.Errorf("after exec the child is the same generation; error %v", err)
		}
		if same, err := parent.Generation(); err != nil || same != parent.Opened() {
			t.Errorf("the parent changed: %v", err)
		}
	})
}

func TestASpawnedProgramIsAProcessOfItsOwn(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		a := start(t, program(t), 0)
		other := program(t)
		p, err := k.identified(a.tell("spawn "+other, "ready"))
		must(t, err)
		defer p.Close()
		if p.Info().PID == a.pid || p.Info().Executable != other {
			t.Errorf("spawned: %+v", p.Info())
		}
	})
}

func TestADeadProcessStaysDeadWhenItsNumberIsReused(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		path := program(t)
		old := start(t, path, 0)
		p, err := k.identified(old.pid)
		must(t, err)
		defer p.Close()
		old.end()
		start(t, path, 0).tell("as "+strconv.Itoa(old.pid), "child")

		if p.Alive() {
			t.Error("the dead process lives")
		}
		if _, err := p.Generation(); !errors.Is(err, secret.ErrDenied) {
			t.Errorf("the generation of a dead process: %v", err)
		}
		if f, err := p.Executable(); !errors.Is(err, secret.ErrDenied) {
			t.Errorf("the executable of a dead process: %v, %v", f, err)
		}
		if err := k.belongs(old.pid, p); !errors.Is(err, secret.ErrDenied) {
			t.Errorf("the new process's thread is the dead one's: %v", err)
		}
		pidfd, err := unix.FcntlInt(uintptr(p.pidfd), unix.F_DUPFD_CLOEXEC, 0)
		must(t, err)
		confused, err := orNothing(k.adopt(old.pid, pidfd))
		denied(t, confused, err, "")
		reborn, err := k.identified(old.pid)
		must(t, err)
		defer reborn.Close()
		if reborn.Opened() == p.Opened() {
			t.Error("the new process is the same generation as the dead one")
		}
	})
}

func TestTheExecutableIsReadThroughTheProcess(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		path := program(t)
		p, err := k.open(start(t, path, 0).pid)
		must(t, err)
		defer p.Close()
		file, err := p.Executable()
		must(t, err)
		defer func() { must(t, file.Close()) }()
		want, err := compiled()
		must(t, err)
		if got, err := io.ReadAll(file); err != nil || !bytes.Equal(got, want) {
			t.Errorf("read %d bytes of the executable, want %d; error %v", len(got), len(want), err)
		}
	})
}

func TestAnotherExecutableIsNotReadInItsPlace(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		a := start(t, program(t), 0)
		p, err := k.open(a.pid)
		must(t, err)
		defer p.Close()
		a.tell("exec "+program(t), "ready")
		file, err := p.Executable()
		if !errors.Is(err, secret.ErrDenied) {
			t.Errorf("got %v, %v", file, err)
		}
	})
}
