// SPDX-License-Identifier: Apache-2.0

package process

import (
	"fmt"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// Generation is what a process was at one moment, as far as a broker's answer
// can depend on it. Generations are compared with ==; equal ones mean the same
// process with the same program and rights. They do not outlive a boot.
type Generation struct {
	pid    int
	inode  uint64 // of the pidfd, 0 before Linux 6.9
	start  uint64 // clock ticks after boot
	ids    ids
	groups string // supplementary, as in /proc/<pid>/status
	file   file
	cgroup uint64 // id in the unified hierarchy, 0 when the kernel did not tell
	member string // /proc/<pid>/cgroup: the place in every hierarchy
}

// moment is a Generation with what else was seen at the time.
type moment struct {
	Generation

	// stack tells two executions of one file apart, unless randomization is
	// off. A set-uid program cannot have it switched off by its caller.
	stack uint64
}

// observe builds the generation of a process as it is now. It refuses what is
// nobody's workload, and a process that changes while it is looked at.
func (p *Process) observe() (moment, error) {
	t, err := p.kernel.leader(p.pidfd, p.procfd)
	if err != nil {
		return moment{}, failed("asking for the ids", p.pid, err)
	}
	m := moment{Generation: Generation{pid: p.pid, inode: p.inode, ids: t.ids, cgroup: t.cgroup}}
	text, err := readAt(p.procfd, "stat")
	if err != nil {
		return m, failed("reading the state", p.pid, err)
	}
	s, err := parseStat(text)
	if err != nil {
		return m, failed("reading the state", p.pid, err)
	}
	if s.kernelThread {
		return m, fmt.Errorf("process %d is a kernel thread: %w", p.pid, secret.ErrDenied)
	}
	m.start, m.stack = s.start, s.stack
	if err := t.ids.check(); err != nil {
		return m, fmt.Errorf("process %d: %w", p.pid, err)
	}
	if m.file, err = executable(p.procfd); err != nil {
		return m, failed("looking at the executable", p.pid, err)
	}
	if text, err = readAt(p.procfd, "cgroup"); err != nil {
		return m, failed("reading the cgroup", p.pid, err)
	}
	m.member = string(text)
	if text, err = readAt(p.procfd, "status"); err != nil {
		return m, failed("reading the groups", p.pid, err)
	}
	details, err := parseStatus(text)
	if err != nil {
		return m, failed("reading the groups", p.pid, err)
	}
	m.groups = details.groups
	if details.task.ids != t.ids || details.task.process != p.pid {
		return m, fmt.Errorf("process %d changed its ids while they were read: %w", p.pid, secret.ErrDenied)
	}
	// All of it was about this process if it is alive after: its number is free,
	// for the folder in /proc to be another's, only when it has been reaped.
	if !p.Alive() {
		return m, failed("looking at the state", p.pid, unix.ESRCH)
	}
	return m, nil
}

// unchanged is the cheap comparison of a process with what it was: it lives, has
// the ids and the cgroup, and runs the file, in that order. t is what the kernel
// has just told about one of its threads. Supplementary groups are not compared.
func (p *Process) unchanged(was *Generation, t *task) bool {
	if !p.Alive() || t.ids != was.ids || t.process != was.pid {
		return false
	}
	if t.cgroup != was.cgroup {
		return false
	}
	if t.cgroup == 0 {
		if text, err := readAt(p.procfd, "cgroup"); err != nil || string(text) != was.member {
			return false
		}
	}
	f, err := executable(p.procfd)
	return err == nil && f == was.file
}
