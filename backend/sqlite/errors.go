// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/keyhole-agent/keyhole/secret"
)

// translate gives an error of SQLite or of the filesystem the identity that
// callers know. https://www.sqlite.org/rescode.html names the codes.
func translate(err error) error {
	if err == nil {
		return nil
	}
	if found, ok := errors.AsType[sqlite3.Error](err); ok {
		return translateCode(err, found)
	}
	switch {
	case noSpace(err):
		return fmt.Errorf("%w: %w", secret.ErrFull, err)
	case errors.Is(err, syscall.EROFS), errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: the store cannot be written: %w", secret.ErrUnavailable, err)
	}
	return err
}

func translateCode(err error, found sqlite3.Error) error {
	if found.Code == sqlite3.ErrFull || noSpace(found.SystemErrno) {
		return fmt.Errorf("%w: free some space on the store's disk: %w", secret.ErrFull, err)
	}
	switch found.Code {
	case sqlite3.ErrCorrupt, sqlite3.ErrNotADB, sqlite3.ErrFormat:
		return fmt.Errorf("%w: the store is damaged; restore it from a backup: %w", secret.ErrTampered, err)
	case sqlite3.ErrReadonly, sqlite3.ErrPerm, sqlite3.ErrCantOpen, sqlite3.ErrAuth:
		return fmt.Errorf("%w: the store cannot be written; is its folder or disk read-only? %w", secret.ErrUnavailable, err)
	case sqlite3.ErrIoErr, sqlite3.ErrNomem:
		return fmt.Errorf("%w: the store's disk failed: %w", secret.ErrUnavailable, err)
	case sqlite3.ErrBusy, sqlite3.ErrLocked, sqlite3.ErrProtocol:
		return fmt.Errorf("%w: another program holds the store's locks: %w", secret.ErrUnavailable, err)
	case sqlite3.ErrTooBig:
		return fmt.Errorf("%w: %w", secret.ErrTooLarge, err)
	default:
		return err // a mistake of this package
	}
}

func noSpace(err error) bool {
	return errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) || errors.Is(err, syscall.EFBIG)
}
