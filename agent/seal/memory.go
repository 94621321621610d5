// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// arena is memory of our own, outside Go's heap: the collector neither moves
// nor copies it, and it goes back to the kernel cleared.
type arena struct {
	bytes []byte // whole pages
	weak  error  // which protection is missing; nil for none
}

// newArena maps at least size bytes that are locked into memory, left out of
// core files, and empty in a forked child. A protection that the system refuses
// is reported in weak: an agent without it beats no agent, but must say so.
func newArena(size int) (*arena, error) {
	page := os.Getpagesize()
	length := (size + page - 1) / page * page
	bytes, err := unix.Mmap(-1, 0, length, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("mapping %d bytes for keys: %w (%w)", length, secret.ErrUnavailable, err)
	}
	a := &arena{bytes: bytes}
	if err := unix.Mlock(bytes); err != nil {
		a.weak = fmt.Errorf("keys may be swapped out: locking %d bytes into memory: %w; raise LimitMEMLOCK= of the service, or `ulimit -l`", length, err)
	}
	if err := unix.Madvise(bytes, unix.MADV_DONTDUMP); err != nil {
		a.weak = errors.Join(a.weak, fmt.Errorf("keys may be in core files: madvise(MADV_DONTDUMP): %w", err))
	}
	if err := unix.Madvise(bytes, unix.MADV_WIPEONFORK); err != nil {
		a.weak = errors.Join(a.weak, fmt.Errorf("keys may be in forked processes: madvise(MADV_WIPEONFORK): %w", err))
	}
	return a, nil
}

// close clears the memory and gives it back. Slices of it must not be used
// afterwards: they point nowhere.
func (a *arena) close() error {
	clear(a.bytes)
	bytes := a.bytes
	a.bytes = nil
	if bytes == nil {
		return nil
	}
	if err := unix.Munmap(bytes); err != nil {
		return fmt.Errorf("unmapping the memory of keys: %w", err)
	}
	return nil
}

// HardenProcess keeps other processes and core files away from this process's
// memory: PR_SET_DUMPABLE 0 and RLIMIT_CORE 0. Call it after the last change of
// user or group, which would undo it.
//
// The kernel then gives the files in /proc/<pid> to root. Without
// CAP_SYS_PTRACE nobody, processes of the same user included, can attach a
// debugger or read this process's mem, environ, maps, fd, exe or cwd there; a
// process without root can itself no longer open its own /proc/self/environ or
// /proc/self/mem, while status, mountinfo and its descriptors in /proc/self/fd
// stay readable to it. Whoever attests this process by its executable needs
// that capability, as SPIRE's agent has. Programs that it executes are as they
// would be without the call, but for the limit on core files.
func HardenProcess() error {
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("keeping other processes from this one's memory: prctl(PR_SET_DUMPABLE): %w", err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{}); err != nil {
		return fmt.Errorf("forbidding core files: %w", err)
	}
	return nil
}
