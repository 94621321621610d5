// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// A run has a folder of its own below the one for temporary files. Its name
// says that it is ours, its owner that nobody else made it, and a lock in it
// whether its run still goes on.
const (
	runPrefix = "keyhole-e2e-"
	runLock   = "lock"
)

func newRunFolder() (dir string, release func() error, err error) {
	if dir, err = os.MkdirTemp("", runPrefix); err != nil {
		return "", nil, err
	}
	if err := os.Chmod(dir, 0o755); err != nil { // every user passes through
		return "", nil, err
	}
	lock, err := lockRun(dir)
	if err != nil {
		return "", nil, err
	}
	return dir, func() error { return errors.Join(removeRun(dir), lock.Close()) }, nil
}

// lockRun fails when the run goes on.
func lockRun(dir string) (*os.File, error) {
	lock, err := os.OpenFile(filepath.Join(dir, runLock), os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	return lock, nil
}

// removeLeftovers removes what runs left that were killed.
func removeLeftovers() error {
	found, err := filepath.Glob(filepath.Join(os.TempDir(), runPrefix+"*"))
	if err != nil {
		return err
	}
	var failed []error
	for _, dir := range found {
		info, err := os.Lstat(dir)
		if err != nil || !info.IsDir() || int(info.Sys().(*syscall.Stat_t).Uid) != os.Geteuid() {
			continue
		}
		lock, err := lockRun(dir)
		if err != nil {
			continue // it goes on
		}
		failed = append(failed, removeRun(dir), lock.Close())
	}
	return errors.Join(failed...)
}

// removeRun ends the processes whose program lies in the folder of a run, which
// no others have, and removes what is mounted there and the folder.
func removeRun(dir string) error {
	processes, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return err
	}
	for _, process := range processes {
		program, err := os.Readlink(filepath.Join(process, "exe"))
		pid, _ := strconv.Atoi(filepath.Base(process)) // the pattern has only digits
		if err == nil && strings.HasPrefix(program, dir+"/") {
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("ending process %d of %s: %w", pid, program, err)
			}
		}
	}
	return removeTree(dir)
}

// removeTree unmounts what is mounted below dir, and removes it.
func removeTree(dir string) error {
	points, err := mountsBelow(dir)
	if err != nil {
		return err
	}
	for _, point := range slices.Backward(points) {
		if err := unix.Unmount(point, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", point, err)
		}
	}
	return os.RemoveAll(dir)
}

// mountsBelow returns the mount points below dir, in the order in which they
// were mounted.
func mountsBelow(dir string) ([]string, error) {
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	var points []string
	for line := range strings.Lines(string(table)) {
		// ID parent major:minor root point …; see proc_pid_mountinfo(5).
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], dir+"/") {
			points = append(points, fields[4])
		}
	}
	return points, nil
}

// folder returns a new folder that every user may enter. It is short, because
// the path of a socket is.
func folder(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp(run.dir, "") //nolint:usetesting // that of the test is too long, and closed to others
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := removeTree(dir); err != nil {
			t.Error(err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// write makes a file, which the given mode allows to be read.
func write(t *testing.T, path, text string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // of one that was there
		t.Fatal(err)
	}
}

// mountTmpfs mounts a small filesystem at a folder that it makes.
func mountTmpfs(t *testing.T, dir, options string) {
	t.Helper()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("tmpfs", dir, "tmpfs", unix.MS_NODEV|unix.MS_NOSUID, options); err != nil {
		t.Fatal("mounting a small filesystem: ", err)
	}
}
