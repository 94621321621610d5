// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// kernel is how the kernel is asked.
type kernel struct {
	procOnly bool // as if PIDFD_GET_INFO did not exist
}

// ids are all user and group ids of a task.
type ids struct {
	ruid, euid, suid, fsuid uint32
	rgid, egid, sgid, fsgid uint32
}

// task is what the kernel tells about a thread, or about a process by its first
// thread.
type task struct {
	process int // thread group id
	ids     ids
	cgroup  uint64 // id in the unified hierarchy; 0 when /proc was asked
}

// invalidID is (uid_t)-1: an id that has no meaning in the namespace of the
// asker. No process has it.
const invalidID = 0xffffffff

// check refuses ids that cannot be a workload's.
func (i ids) check() error {
	switch {
	case i.ruid == invalidID || i.euid == invalidID || i.fsuid == invalidID ||
		i.rgid == invalidID || i.egid == invalidID || i.fsgid == invalidID:
		return fmt.Errorf("its user or group id has no meaning here: %w", secret.ErrDenied)
	case i.ruid != i.euid || i.euid != i.fsuid || i.rgid != i.egid || i.egid != i.fsgid:
		return fmt.Errorf("its real, effective and filesystem ids differ, as those of a set-uid program: %w", secret.ErrDenied)
	}
	return nil
}

// thread returns what is known of a thread by its id in our pid namespace.
func (k kernel) thread(tid int) (task, error) {
	if !k.procOnly {
		t, err := pidfdThread(tid)
		if !unsupported(err) {
			return t, err
		}
	}
	return procTask(unix.AT_FDCWD, fmt.Sprintf("/proc/%d/status", tid))
}

// leader returns what is known of the process that the two descriptors hold.
func (k kernel) leader(pidfd, procfd int) (task, error) {
	if !k.procOnly {
		t, err := pidfdTask(pidfd)
		if !unsupported(err) {
			return t, err
		}
	}
	return procTask(procfd, "status")
}

// unsupported tells whether err means that the kernel does not know the call,
// the flag or the request.
func unsupported(err error) bool {
	return errors.Is(err, unix.ENOTTY) || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS)
}

func pidfdThread(tid int) (task, error) {
	fd, err := unix.PidfdOpen(tid, unix.PIDFD_THREAD)
	if err != nil {
		return task{}, err
	}
	t, err := pidfdTask(fd)
	// The descriptor was never written to; close has nothing to say but EBADF.
	_ = unix.Close(fd)
	return t, err
}

func pidfdTask(fd int) (task, error) {
	const wanted = unix.PIDFD_INFO_PID | unix.PIDFD_INFO_CREDS | unix.PIDFD_INFO_CGROUPID
	info := unix.PidfdInfo{Mask: wanted}
	if err := unix.IoctlPidfdInfo(fd, &info); err != nil {
		return task{}, err
	}
	if info.Mask&wanted != wanted || info.Tgid == 0 {
		return task{}, unix.ESRCH // exited, or in a pid namespace that we cannot see
	}
	return task{
		process: int(info.Tgid),
		cgroup:  info.Cgroupid,
		ids: ids{
			ruid: info.Ruid, euid: info.Euid, suid: info.Suid, fsuid: info.Fsuid,
			rgid: info.Rgid, egid: info.Egid, sgid: info.Sgid, fsgid: info.Fsgid,
		},
	}, nil
}

// alive tells whether the process of a pidfd has not exited: a pidfd becomes
// readable when the last thread does.
func alive(pidfd int) bool {
	for {
		ready := [1]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}
		n, err := unix.Poll(ready[:], 0)
		if err != unix.EINTR {
			return err == nil && n == 0
		}
	}
}

// file is what tells an executable from another, without reading it.
type file struct {
	major, minor uint32
	inode        uint64
	changed      int64 // change time, seconds
	nanoseconds  uint32
}

// executable looks at the file that a process runs, from its folder in /proc.
func executable(procfd int) (file, error) { return statx(procfd, "exe\x00", 0) }

// statx looks at a file; name ends with a zero byte. unix.Statx allocates for
// the name, and this is asked for at every request.
//
// It takes the attributes that this node has: a workload's executable may lie
// on a filesystem that the workload itself serves, and must not make us wait.
func statx(folder int, name string, flags uintptr) (file, error) {
	const wanted = unix.STATX_INO | unix.STATX_CTIME
	var s unix.Statx_t
	for {
		_, _, errno := unix.Syscall6(unix.SYS_STATX, uintptr(folder), uintptr(unsafe.Pointer(unsafe.StringData(name))),
			unix.AT_STATX_DONT_SYNC|flags, wanted, uintptr(unsafe.Pointer(&s)), 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno != 0:
			return file{}, errno
		case s.Mask&wanted != wanted:
			return file{}, unix.EOPNOTSUPP
		}
		return file{
			major: s.Dev_major, minor: s.Dev_minor, inode: s.Ino,
			changed: s.Ctime.Sec, nanoseconds: s.Ctime.Nsec,
		}, nil
	}
}

// pidfsInode returns the inode of a pidfd, which is never used again until the
// next boot; 0 on kernels whose pidfds share one inode (before Linux 6.9).
func pidfsInode(pidfd int) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(pidfd, &fs); err != nil {
		return 0, err
	}
	if fs.Type != unix.PID_FS_MAGIC {
		return 0, nil
	}
	var s unix.Stat_t
	if err := unix.Fstat(pidfd, &s); err != nil {
		return 0, err
	}
	return s.Ino, nil
}

// failed wraps the error of a system call. What the kernel refuses to show, and
// what is not there any more, is nobody's workload; for the rest (descriptors,
// memory) trying again may help.
func failed(doing string, pid int, err error) error {
	sentinel := secret.ErrUnavailable
	switch {
	case errors.Is(err, secret.ErrDenied), errors.Is(err, secret.ErrUnavailable):
		return fmt.Errorf("%s of process %d: %w", doing, pid, err)
	case errors.Is(err, unix.ESRCH), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EACCES),
		errors.Is(err, unix.EPERM), errors.Is(err, unix.EINVAL), errors.Is(err, unix.EOPNOTSUPP):
		sentinel = secret.ErrDenied
	}
	return fmt.Errorf("%s of process %d: %w: %w", doing, pid, sentinel, err)
}
