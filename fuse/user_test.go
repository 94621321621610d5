// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"testing/fstest"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/fuse/fusetest"
)

// user is the part that uses a mount, as some user. Its methods return errno as
// a number, because errors lose it on the way.
type user struct {
	mu    sync.Mutex
	files map[int]int // descriptors by number
	stop  atomic.Bool
}

// Result is what a system call said.
type Result struct {
	Data  string
	Errno syscall.Errno
}

func (r *Result) set(data []byte, err error) error {
	r.Data = string(data)
	if err != nil && !errors.As(err, &r.Errno) {
		return err
	}
	return nil
}

func (u *user) Read(path string, reply *Result) error { return reply.set(os.ReadFile(path)) }

func (u *user) Readlink(path string, reply *Result) error {
	target, err := os.Readlink(path)
	return reply.set([]byte(target), err)
}

type OpenArguments struct {
	Path  string
	Flags int
	As    int // the number it is called by from then on
}

func (u *user) Open(a OpenArguments, reply *Result) error {
	fd, err := unix.Open(a.Path, a.Flags|unix.O_CLOEXEC, 0)
	if err == nil {
		u.mu.Lock()
		defer u.mu.Unlock()
		u.files[a.As] = fd
	}
	return reply.set(nil, err)
}

// ReadOpen reads from the start of an open file.
func (u *user) ReadOpen(as int, reply *Result) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	buffer := make([]byte, 1<<20)
	count, err := unix.Pread(u.files[as], buffer, 0)
	return reply.set(buffer[:max(count, 0)], err)
}

// Reopen opens an open file again, through /proc.
func (u *user) Reopen(as int, reply *Result) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return reply.set(os.ReadFile(fmt.Sprintf("/proc/self/fd/%d", u.files[as])))
}

// ReadIn opens and reads the password in an open folder.
func (u *user) ReadIn(as int, reply *Result) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	fd, err := unix.Openat(u.files[as], "password", unix.O_RDONLY, 0)
	if err == nil {
		err = unix.Close(fd)
	}
	return reply.set(nil, err)
}

// ListOpen lists an open folder.
func (u *user) ListOpen(as int, reply *Result) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.List(fmt.Sprintf("/proc/self/fd/%d/", u.files[as]), reply)
}

func (u *user) Close(as int, _ *nothing) error {
	u.mu.Lock()
	defer u.mu.Unlock()
	return unix.Close(u.files[as])
}

type Attributes struct {
	Errno            syscall.Errno
	Mode             uint32
	Size             int64
	UID, GID         uint32
	Inode            uint64
	Modified         int64
	Links            uint64
	Free, NameLength int64
}

func (u *user) Stat(path string, reply *Attributes) error {
	var stat unix.Stat_t
	var filesystem unix.Statfs_t
	if err := errors.Join(unix.Lstat(path, &stat), unix.Statfs(path, &filesystem)); err != nil {
		if !errors.As(err, &reply.Errno) {
			return err
		}
		return nil
	}
	*reply = Attributes{
		Mode: stat.Mode, Size: stat.Size, UID: stat.Uid, GID: stat.Gid, Inode: stat.Ino, Links: uint64(stat.Nlink),
		Modified: stat.Mtim.Sec, Free: int64(filesystem.Bavail), NameLength: filesystem.Namelen,
	}
	return nil
}

func (u *user) List(path string, reply *Result) error {
	entries, err := os.ReadDir(path)
	var names bytes.Buffer
	for _, entry := range entries {
		fmt.Fprintf(&names, "%s ", entry.Name())
	}
	return reply.set(bytes.TrimSpace(names.Bytes()), err)
}

type TestFSArguments struct {
	Dir      string
	Expected []string
}

// TestFS is the standard library's own check of a filesystem.
func (u *user) TestFS(a TestFSArguments, _ *nothing) error {
	return fstest.TestFS(os.DirFS(a.Dir), a.Expected...)
}

// Change tries to change things in every way there is, and tells the errno of
// each. file is a secret's file, dir its folder.
func (u *user) Change(a struct{ File, Dir string }, reply *map[string]syscall.Errno) error {
	other := a.Dir + "/other"
	try := map[string]func() error{
		"open for writing":  func() error { _, err := unix.Open(a.File, unix.O_WRONLY, 0); return err },
		"open read-write":   func() error { _, err := unix.Open(a.File, unix.O_RDWR, 0); return err },
		"open to truncate":  func() error { _, err := unix.Open(a.File, unix.O_RDONLY|unix.O_TRUNC, 0); return err },
		"create":            func() error { _, err := unix.Open(other, unix.O_CREAT|unix.O_WRONLY, 0o600); return err },
		"temporary file":    func() error { _, err := unix.Open(a.Dir, unix.O_TMPFILE|unix.O_RDWR, 0o600); return err },
		"truncate":          func() error { return unix.Truncate(a.File, 0) },
		"mkdir":             func() error { return unix.Mkdir(other, 0o700) },
		"mknod":             func() error { return unix.Mknod(other, unix.S_IFIFO|0o600, 0) },
		"symlink":           func() error { return unix.Symlink("x", other) },
		"link":              func() error { return unix.Link(a.File, other) },
		"unlink":            func() error { return unix.Unlink(a.File) },
		"rmdir":             func() error { return unix.Rmdir(a.Dir) },
		"rename":            func() error { return unix.Rename(a.File, other) },
		"rename a folder":   func() error { return unix.Rename(a.Dir, a.Dir+"2") },
		"chmod":             func() error { return unix.Chmod(a.File, 0o600) },
		"chown":             func() error { return unix.Chown(a.File, 0, 0) },
		"utimes":            func() error { return unix.Utimes(a.File, make([]unix.Timeval, 2)) },
		"setxattr":          func() error { return unix.Setxattr(a.File, "user.x", []byte("1"), 0) },
		"removexattr":       func() error { return unix.Removexattr(a.File, "user.x") },
		"setxattr on a dir": func() error { return unix.Setxattr(a.Dir, "user.x", []byte("1"), 0) },
	}
	*reply = map[string]syscall.Errno{}
	for name, f := range try {
		var errno syscall.Errno
		if err := f(); err != nil && !errors.As(err, &errno) {
			return err
		}
		(*reply)[name] = errno
	}
	return nil
}

// Ask tries what a filesystem may say that it does not have.
func (u *user) Ask(path string, reply *map[string]syscall.Errno) error {
	*reply = map[string]syscall.Errno{}
	note := func(name string, err error) {
		var errno syscall.Errno
		_ = errors.As(err, &errno) // 0 for none
		(*reply)[name] = errno
	}
	_, err := unix.Getxattr(path, "user.x", make([]byte, 16))
	note("getxattr", err)
	size, err := unix.Listxattr(path, make([]byte, 64))
	note("listxattr", err)
	if size != 0 {
		return fmt.Errorf("%d bytes of attributes", size)
	}
	fd, err := unix.Open(path, unix.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	note("fsync", unix.Fsync(fd))
	_, err = unix.IoctlGetInt(fd, unix.FS_IOC_GETFLAGS)
	note("ioctl", err)
	_, err = unix.Seek(fd, 0, unix.SEEK_DATA)
	note("seek to data", err)
	_, err = unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	note("poll", err)
	return nil
}

type ManyArguments struct {
	Path  string
	Count int
}

// ReadlinkMany reads a link in as many threads at once, and counts the answers.
func (u *user) ReadlinkMany(a ManyArguments, reply *map[syscall.Errno]int) error {
	var running sync.WaitGroup
	var mu sync.Mutex
	*reply = map[syscall.Errno]int{}
	for range a.Count {
		running.Go(func() {
			var errno syscall.Errno
			_, err := os.Readlink(a.Path)
			_ = errors.As(err, &errno) // 0 for none
			mu.Lock()
			defer mu.Unlock()
			(*reply)[errno]++
		})
	}
	running.Wait()
	return nil
}

// OpenReadClose does that, in as many threads as readers, and tells how long it
// took.
func (u *user) OpenReadClose(a struct {
	Path           string
	Count, Readers int
}, reply *time.Duration,
) error {
	failed := make([]error, a.Readers)
	began := time.Now()
	var running sync.WaitGroup
	for i := range a.Readers {
		running.Go(func() { failed[i] = fusetest.OpenReadClose(a.Path, make([]byte, 4096), a.Count/a.Readers) })
	}
	running.Wait()
	*reply = time.Since(began)
	return errors.Join(failed...)
}

// Watched is what readers saw while a file was rotated.
type Watched struct {
	Reads, Torn, Backwards int
	Errors                 map[string]int
}

// Watch reads a file over and over in as many threads as readers, until StopWatching.
// A version consists of lines that all say its number.
func (u *user) Watch(a ManyArguments, reply *Watched) error {
	reply.Errors = map[string]int{}
	var running sync.WaitGroup
	var mu sync.Mutex
	for range a.Count {
		running.Go(func() {
			seen, last := Watched{Errors: map[string]int{}}, 0
			for !u.stop.Load() {
				seen.look(a.Path, &last)
			}
			mu.Lock()
			defer mu.Unlock()
			reply.Reads += seen.Reads
			reply.Torn += seen.Torn
			reply.Backwards += seen.Backwards
			for name, count := range seen.Errors {
				reply.Errors[name] += count
			}
		})
	}
	running.Wait()
	return nil
}

func (w *Watched) look(path string, last *int) {
	content, err := os.ReadFile(path)
	if err != nil {
		if failure, ok := errors.AsType[*fs.PathError](err); ok {
			w.Errors[failure.Op+": "+failure.Err.Error()]++
		}
		return
	}
	w.Reads++
	version := 0
	_, err = fmt.Sscanf(string(content), "version %d", &version)
	if err != nil || string(content) != contentOf(version) {
		w.Torn++
	}
	if version < *last {
		w.Backwards++
	}
	*last = version
}

// StopWatching ends Watch.
func (u *user) StopWatching(nothing, *nothing) error {
	u.stop.Store(true)
	return nil
}

// contentOf is what a version of the Watched file consists of: some pages, and
// another number of them each time.
func contentOf(version int) string {
	return string(bytes.Repeat(fmt.Appendf(nil, "version %06d\n", version), 100+(version%7)*300))
}
