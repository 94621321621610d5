// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// maxSocketPath is what fits into sockaddr_un with its final zero (unix(7)).
const maxSocketPath = 107

// file is a socket in the filesystem that we made, and how to know it again.
type file struct {
	path   string
	device uint64
	inode  uint64
}

// listen makes a socket at path with the given mode and listens on it. Its
// folder is made, 0755, when it is missing.
//
// What is in the way decides: a socket that nobody listens on is replaced; one
// that is served is secret.ErrInUse, with the pid of who serves it; anything
// else, and a folder that others may write to, is secret.ErrInvalid.
func listen(path string, mode fs.FileMode) (*net.UnixListener, file, error) {
	folder, name := filepath.Split(path)
	if !filepath.IsAbs(path) || name == "" {
		return nil, file{}, fmt.Errorf("%w socket path %q: it must be absolute and name a file", secret.ErrInvalid, path)
	}
	temporary := filepath.Join(folder, "."+randomHex(4))
	if longest := max(len(path), len(temporary)); longest > maxSocketPath {
		return nil, file{}, fmt.Errorf("%w socket path %q: %d bytes too long for a Unix socket", secret.ErrInvalid, path, longest-maxSocketPath)
	}
	if err := prepareFolder(folder); err != nil {
		return nil, file{}, err
	}
	unlock, err := lockFile(path + ".lock")
	if err != nil {
		return nil, file{}, fmt.Errorf("creating the socket %s: %w", path, err)
	}
	defer unlock()
	if err := checkReplaceable(path); err != nil {
		return nil, file{}, err
	}
	listener, made, err := bind(temporary, path, mode)
	if err != nil {
		return nil, file{}, fmt.Errorf("creating the socket %s: %w", path, err)
	}
	return listener, made, nil
}

// prepareFolder makes the folder when it is missing, and refuses one in which
// everybody can replace what is ours. In a sticky folder they cannot.
func prepareFolder(folder string) error {
	if err := os.Mkdir(folder, 0o755); err == nil { //nolint:gosec // callers of any user must reach the socket
		if err := os.Chmod(folder, 0o755); err != nil { //nolint:gosec // whatever the umask
			return fmt.Errorf("preparing the folder of the sockets: %w", err)
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("preparing the folder of the sockets: %w", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(folder, &st); err != nil {
		return fmt.Errorf("preparing the folder of the sockets: %w", &fs.PathError{Op: "stat", Path: folder, Err: err})
	}
	if st.Mode&unix.S_IWOTH != 0 && st.Mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("%w folder %s: everybody may replace a socket in it; chmod o-w", secret.ErrInvalid, folder)
	}
	return nil
}

// checkReplaceable returns nil when there is nothing at path, or a socket that
// nobody listens on.
func checkReplaceable(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for a socket: %w", err)
	}
	if info.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w socket path %s: there is something else, and it stays", secret.ErrInvalid, path)
	}
	probe, err := net.Dial("unix", path) // does not wait: a full backlog is EAGAIN
	switch {
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil
	case errors.Is(err, unix.EAGAIN):
		return fmt.Errorf("socket %s: %w, which is too busy to say its pid", path, secret.ErrInUse)
	case err != nil:
		return fmt.Errorf("asking who serves the socket %s: %w", path, err)
	}
	defer probe.Close() // nothing was sent
	credentials, err := peerCredentials(probe.(*net.UnixConn))
	if err != nil {
		return fmt.Errorf("socket %s: %w: %w", path, secret.ErrInUse, err)
	}
	return fmt.Errorf("socket %s: %w: process %d serves it", path, secret.ErrInUse, credentials.Pid)
}

// bind makes the socket under a temporary name, so that it has its final mode
// when it appears at path, and takes the place of an old one in one step.
func bind(temporary, path string, mode fs.FileMode) (*net.UnixListener, file, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		// The mode of an unbound socket is what bind gives to the file, less the
		// umask: nobody can connect before the mode is set.
		var failure error
		err := raw.Control(func(fd uintptr) { failure = unix.Fchmod(int(fd), 0o600) })
		return errors.Join(err, failure)
	}}
	general, err := config.Listen(context.Background(), "unix", temporary)
	if err != nil {
		return nil, file{}, err
	}
	listener := general.(*net.UnixListener)
	listener.SetUnlinkOnClose(false)
	made, err := publish(temporary, path, mode)
	if err != nil {
		return nil, file{}, errors.Join(err, listener.Close(), os.Remove(temporary))
	}
	return listener, made, nil
}

func publish(temporary, path string, mode fs.FileMode) (file, error) {
	if err := os.Chmod(temporary, mode); err != nil {
		return file{}, err
	}
	made, err := identify(temporary)
	if err != nil {
		return file{}, err
	}
	if err := os.Rename(temporary, path); err != nil {
		return file{}, err
	}
	made.path = path
	return made, nil
}

func identify(path string) (file, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return file{}, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return file{path: path, device: st.Dev, inode: st.Ino}, nil
}

// remove removes the socket if it is still the one that we made.
func (f file) remove() error {
	unlock, err := lockFile(f.path + ".lock")
	if errors.Is(err, secret.ErrInUse) {
		return nil // somebody is about to replace it
	}
	if err != nil {
		return fmt.Errorf("removing the socket %s: %w", f.path, err)
	}
	defer unlock()
	found, err := identify(f.path)
	if errors.Is(err, fs.ErrNotExist) || err == nil && found != f {
		return nil
	}
	if err == nil {
		err = os.Remove(f.path)
	}
	if err != nil {
		return fmt.Errorf("removing the socket %s: %w", f.path, err)
	}
	return nil
}

// lockFile makes sure that one agent at a time works on a socket's name. The
// lock exists only meanwhile; secret.ErrInUse when another has it.
func lockFile(path string) (unlock func(), err error) {
	for {
		lock, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			_ = lock.Close() // nothing was written
			if errors.Is(err, unix.EWOULDBLOCK) {
				err = fmt.Errorf("%w: it is being started just now", secret.ErrInUse)
			}
			return nil, err
		}
		opened, openErr := lock.Stat()
		named, namedErr := os.Lstat(path)
		if openErr == nil && namedErr == nil && os.SameFile(opened, named) {
			return func() {
				_ = os.Remove(path) // while it is locked: whoever opened it meanwhile sees that it is gone
				_ = lock.Close()
			}, nil
		}
		_ = lock.Close() // its last holder removed it between our open and our lock
		if openErr != nil {
			return nil, openErr
		}
	}
}

// peerCredentials returns who made the other end of a connection: its pid in
// our namespace, 0 when it is in none that we see, and its effective ids. They
// are those of the moment when it connected, or listened.
func peerCredentials(conn *net.UnixConn) (*unix.Ucred, error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("asking for the peer's credentials: %w", err)
	}
	var credentials *unix.Ucred
	var failure error
	err = raw.Control(func(fd uintptr) {
		credentials, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, failure); err != nil {
		return nil, fmt.Errorf("asking for the peer's credentials: %w", err)
	}
	return credentials, nil
}

func randomHex(bytes int) string {
	buffer := make([]byte, bytes)
	_, _ = rand.Read(buffer) // never fails (crypto/rand)
	return hex.EncodeToString(buffer)
}
