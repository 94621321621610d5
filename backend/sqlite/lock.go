// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// lock is the right to be the one process that has a store open: an flock on a
// file beside it, which says whose it is. The kernel lets go of it when the
// process ends, however that happens. The file stays.
type lock struct{ file *os.File }

// acquire takes the lock, or fails with secret.ErrInUse and the holder's pid.
func acquire(path string) (*lock, error) {
	for {
		file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, fmt.Errorf("locking the store: %w", translate(err))
		}
		l := &lock{file}
		current, err := l.take(path)
		if err != nil {
			return nil, errors.Join(err, file.Close())
		}
		if current {
			return l, nil
		}
		if err := file.Close(); err != nil {
			return nil, fmt.Errorf("locking the store: %w", err)
		}
	}
}

// take tells whether the file that it locked still is the one at path: a lock
// on a deleted file keeps nobody out.
func (l *lock) take(path string) (current bool, err error) {
	info, err := l.file.Stat()
	if err != nil {
		return false, fmt.Errorf("locking the store: %w", err)
	}
	if err := guard(path, info); err != nil {
		return false, err
	}
	err = flock(l.file, unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, fmt.Errorf("%w: %s is open in %s", secret.ErrInUse, strings.TrimSuffix(path, lockSuffix), l.holder())
	}
	if err != nil {
		return false, fmt.Errorf("locking the store: %w", err)
	}
	there, err := os.Lstat(path)
	if err != nil || !os.SameFile(info, there) {
		return false, nil //nolint:nilerr // it is gone: make it again
	}
	if err := l.file.Truncate(0); err != nil {
		return false, fmt.Errorf("locking the store: %w", translate(err))
	}
	if _, err := l.file.WriteAt([]byte(strconv.Itoa(os.Getpid())+"\n"), 0); err != nil {
		return false, fmt.Errorf("locking the store: %w", translate(err))
	}
	return true, nil
}

// holder says who has the lock, as far as the file tells.
func (l *lock) holder() string {
	content := make([]byte, 20)
	n, _ := l.file.ReadAt(content, 0) // a short read is the normal case
	pid, err := strconv.Atoi(strings.TrimSpace(string(content[:n])))
	if err != nil {
		return "another process"
	}
	return fmt.Sprintf("process %d", pid)
}

func flock(file *os.File, how int) error {
	for {
		err := unix.Flock(int(file.Fd()), how)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// release lets go of the lock and forgets whose it was.
func (l *lock) release() error {
	return errors.Join(l.file.Truncate(0), l.file.Close())
}
