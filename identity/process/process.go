// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"
	"os"
	"strconv"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Process is one process, held so that a reuse of its number cannot be taken
// for it. Its methods may be called at the same time, and none but Info, Groups
// and Opened after Close. Open, OpenThread and PeerOf make Processes.
type Process struct {
	kernel kernel
	pid    int
	pidfd  int
	procfd int // its folder in /proc
	inode  uint64

	opened     moment
	executable string

	close sync.Once
}

// Open holds the process with the given id in our pid namespace, which must be
// that of a thread group. Our own is allowed.
//
// Errors: secret.ErrDenied when there is no such process, it is a kernel
// thread, its ids are inconsistent or it may not be looked at;
// secret.ErrUnavailable when descriptors or memory are short.
func Open(pid int) (*Process, error) { return orNothing(kernel{}.open(pid)) }

// OpenThread holds the process that the given thread belongs to, as the kernel
// names it in a filesystem request: an id in our pid namespace, 0 for a caller
// outside of it. Beyond what Open refuses, it refuses thread 0, our own threads
// and a thread whose ids are not those of its process.
func OpenThread(tid uint32) (*Process, error) {
	t, err := kernel{}.caller(tid)
	if err != nil {
		return nil, err
	}
	return orNothing(kernel{}.openCaller(int(tid), t))
}

// orNothing drops the closed Process that comes with an error inside of this
// package, where what it learned is still audited.
func orNothing(p *Process, err error) (*Process, error) {
	if err != nil {
		return nil, err
	}
	return p, nil
}

// caller returns what is known of the thread of a filesystem request.
func (k kernel) caller(tid uint32) (task, error) {
	const largest = 1<<31 - 1 // of a pid_t
	if tid == 0 || tid > largest {
		return task{}, fmt.Errorf("the caller is outside of our pid namespace: %w", secret.ErrDenied)
	}
	t, err := k.thread(int(tid))
	if err != nil {
		return task{}, failed("asking for the ids of a thread", int(tid), err)
	}
	return t, nil
}

// openCaller opens the process of a thread of which t was told, unless it is our
// own: a filesystem request of ours that we answer could wait for itself. With an
// error comes a closed Process that knows what was learned.
func (k kernel) openCaller(tid int, t task) (*Process, error) {
	if t.process == os.Getpid() {
		return unopened(t.process), fmt.Errorf("the agent itself is nobody's workload: %w", secret.ErrDenied)
	}
	p, err := k.open(t.process)
	if err != nil {
		return p, err
	}
	if err := k.belongs(tid, p); err != nil {
		p.Close()
		return p, err
	}
	return p, nil
}

// belongs proves that a thread is one of p: it is one of a process with that
// number, and afterwards p, which had the number before, still lives.
func (k kernel) belongs(tid int, p *Process) error {
	t, err := k.thread(tid)
	switch {
	case err != nil:
		return failed("asking for the ids of a thread", p.pid, err)
	case t.process != p.pid || !p.Alive():
		return failed("looking for a thread", p.pid, unix.ESRCH)
	case t.ids != p.opened.ids:
		return fmt.Errorf("a thread of process %d has other ids than the process: %w", p.pid, secret.ErrDenied)
	case t.cgroup != p.opened.cgroup:
		return fmt.Errorf("a thread of process %d is in another cgroup than the process: %w", p.pid, secret.ErrDenied)
	}
	return nil
}

// open holds a process. With an error comes a closed Process that knows what
// was learned.
func (k kernel) open(pid int) (*Process, error) {
	pidfd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return unopened(pid), failed("opening the pidfd", pid, err)
	}
	return k.adopt(pid, pidfd)
}

// unopened is a process of which no more than its number is known.
func unopened(pid int) *Process { return &Process{pid: pid, pidfd: -1, procfd: -1} }

// adopt makes a Process from a pidfd, which it owns, and the number that the
// process has as long as it lives. Errors are as with open.
func (k kernel) adopt(pid, pidfd int) (*Process, error) {
	p := &Process{kernel: k, pid: pid, pidfd: pidfd, procfd: -1}
	if err := p.begin(); err != nil {
		p.Close()
		return p, err
	}
	return p, nil
}

func (p *Process) begin() error {
	var err error
	if p.inode, err = pidfsInode(p.pidfd); err != nil {
		return failed("looking at the pidfd", p.pid, err)
	}
	p.procfd, err = retry(func() (int, error) {
		return unix.Open("/proc/"+strconv.Itoa(p.pid), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	})
	if err != nil {
		return failed("opening the /proc folder", p.pid, err)
	}
	p.opened, err = p.observe()
	name, unnamed := p.executablePath()
	p.executable = name // known or not, for the audit log
	if err != nil {
		return err
	}
	if unnamed != nil {
		return unnamed
	}
	if f, err := executable(p.procfd); err != nil || f != p.opened.file {
		return fmt.Errorf("process %d executed another program while it was looked at: %w", p.pid, secret.ErrDenied)
	}
	return nil
}

func (p *Process) executablePath() (string, error) {
	path := make([]byte, unix.PathMax)
	n, err := retry(func() (int, error) { return unix.Readlinkat(p.procfd, "exe", path) })
	if err != nil {
		return "", failed("reading the name of the executable", p.pid, err)
	}
	return string(path[:n]), nil
}

// Info describes the process as it was when it was opened.
func (p *Process) Info() identity.Process {
	return identity.Process{
		PID:        p.pid,
		UID:        p.opened.ids.fsuid,
		GID:        p.opened.ids.fsgid,
		Executable: p.executable,
		Cgroup:     p.opened.cgroup,
	}
}

// Groups returns the supplementary groups that the process had when it was
// opened, in ascending order.
func (p *Process) Groups() ([]uint32, error) {
	groups, err := parseGroups(p.opened.groups)
	if err != nil {
		return nil, failed("reading the groups", p.pid, err)
	}
	return groups, nil
}

// Generation returns what the process is now, with the errors of Open.
func (p *Process) Generation() (Generation, error) {
	m, err := p.observe()
	return m.Generation, err
}

// Opened returns what the process was when it was opened.
func (p *Process) Opened() Generation { return p.opened.Generation }

// Executable opens the file that the process runs, for reading. It is the one
// that it ran when it was opened, unchanged, or the error is secret.ErrDenied.
// Reading may wait for the filesystem that it lies on. The receiver closes it.
func (p *Process) Executable() (*os.File, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(p.procfd, "exe", unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, failed("opening the executable", p.pid, err)
	}
	opened := os.NewFile(uintptr(fd), p.executable)
	if err := p.same(fd); err != nil {
		_ = opened.Close() // only opened, and the other error says more
		return nil, err
	}
	return opened, nil
}

// same proves that fd is the file that the process ran when it was opened, and
// that it lives.
func (p *Process) same(fd int) error {
	f, err := statx(fd, "\x00", unix.AT_EMPTY_PATH)
	if err != nil {
		return failed("looking at the executable", p.pid, err)
	}
	if f != p.opened.file {
		return fmt.Errorf("process %d runs another program than before: %w", p.pid, secret.ErrDenied)
	}
	if !p.Alive() {
		return failed("opening the executable", p.pid, unix.ESRCH)
	}
	return nil
}

// Alive tells whether the process has not exited.
func (p *Process) Alive() bool { return alive(p.pidfd) }

// Close lets go of the process. It is safe to call it again.
func (p *Process) Close() {
	p.close.Do(func() {
		// Neither descriptor was written to; close has nothing to say.
		for _, fd := range []int{p.pidfd, p.procfd} {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
	})
}
