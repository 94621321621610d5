// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/keyhole-agent/keyhole/secret"
)

// prepareFolder makes the folder of a store, 0700, or checks the one there is.
func prepareFolder(folder string) error {
	info, err := os.Stat(folder)
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(folder, 0o700); err == nil {
			err = syncFolder(filepath.Dir(folder))
		}
		if err == nil {
			info, err = os.Stat(folder)
		}
	}
	if err != nil {
		return fmt.Errorf("preparing the store's folder: %w", translate(err))
	}
	if !info.IsDir() {
		return fmt.Errorf("%w: %s is not a folder", secret.ErrInvalid, folder)
	}
	return guard(folder, info)
}

// guard returns an error when somebody else than this user and root can write.
func guard(path string, info fs.FileInfo) error {
	if mode := info.Mode().Perm(); mode&0o022 != 0 {
		return fmt.Errorf("%w: others can write to %s (mode %04o); chmod go-w it, after asking who already did",
			secret.ErrInvalid, path, mode)
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return fmt.Errorf("reading the owner of %s: no system information", path)
	}
	if uid := os.Geteuid(); stat.Uid != 0 && int(stat.Uid) != uid {
		return fmt.Errorf("%w: %s belongs to uid %d, who can write to it; chown it to uid %d, or run as %d",
			secret.ErrInvalid, path, stat.Uid, uid, stat.Uid)
	}
	return nil
}

// present tells whether there is a store file, and refuses what cannot be one.
func present(path string) (bool, error) {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("looking for the store: %w", translate(err))
	}
	if !info.Mode().IsRegular() {
		return false, fmt.Errorf("%w: %s is not a regular file", secret.ErrInvalid, path)
	}
	return true, guard(path, info)
}

// The header of a database file. https://www.sqlite.org/fileformat.html
const (
	headerBytes         = 100
	headerMagic         = "SQLite format 3\x00"
	headerApplicationID = 68
)

// examine reads the header of a store file that SQLite did not open yet; closing
// a file that SQLite has open would drop its locks.
func examine(path string) (err error) {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("opening the store: %w", translate(err))
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	header := make([]byte, headerBytes)
	switch n, err := io.ReadFull(file, header); {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%w: %s has only %d bytes; restore it from a backup", secret.ErrTampered, path, n)
	case err != nil:
		return fmt.Errorf("reading the store: %w", translate(err))
	}
	if string(header[:len(headerMagic)]) != headerMagic {
		return fmt.Errorf("%w: %s is not a SQLite database, or its beginning is damaged", secret.ErrInvalid, path)
	}
	if id := binary.BigEndian.Uint32(header[headerApplicationID:]); id != applicationID {
		return fmt.Errorf("%w: %s is a SQLite database, but not a Keyhole store (application id %08x)", secret.ErrInvalid, path, id)
	}
	return nil
}

// makeFile makes an empty file, 0600, so that SQLite does not make it 0644.
func makeFile(path string) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return translate(err)
	}
	return file.Close()
}

// syncFile makes the contents of a file durable, and syncFolder its entries.
func syncFile(path string) error   { return syncPath(path, os.O_RDWR) }
func syncFolder(path string) error { return syncPath(path, os.O_RDONLY) }

func syncPath(path string, flag int) error {
	file, err := os.OpenFile(path, flag, 0)
	if err != nil {
		return translate(err)
	}
	return translate(errors.Join(file.Sync(), file.Close()))
}

// removeDatabase removes a database that is not open, with what belongs to it.
func removeDatabase(path string) error {
	for _, suffix := range []string{"-wal", "-shm", "-journal", ""} {
		if err := os.Remove(path + suffix); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return translate(err)
		}
	}
	return nil
}

// identity is which file a path led to when the store was opened.
type identity struct {
	path   string
	device uint64
	inode  uint64
}

// identities remembers the files of an open store.
type identities []identity

func identify(paths ...string) (identities, error) {
	var ids identities
	for _, path := range paths {
		device, inode, err := inodeOf(path)
		if err != nil {
			return nil, fmt.Errorf("looking at the store: %w", translate(err))
		}
		ids = append(ids, identity{path, device, inode})
	}
	return ids, nil
}

// unmoved returns secret.ErrUnavailable when a path leads elsewhere by now: what
// is written to the open file would not be found there again.
func (ids identities) unmoved() error {
	for _, id := range ids {
		device, inode, err := inodeOf(id.path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
			return fmt.Errorf("%w: the store was moved or deleted while open: %s is gone; put it back or restart the agent",
				secret.ErrUnavailable, id.path)
		case err != nil:
			return fmt.Errorf("%w: looking for %s: %w", secret.ErrUnavailable, id.path, err)
		case device != id.device || inode != id.inode:
			return fmt.Errorf("%w: the store was replaced while open: %s is another file now; put the old one back or restart the agent",
				secret.ErrUnavailable, id.path)
		}
	}
	return nil
}

func inodeOf(path string) (device, inode uint64, err error) {
	var stat syscall.Stat_t
	if err := syscall.Stat(path, &stat); err != nil {
		return 0, 0, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(stat.Dev), stat.Ino, nil
}
