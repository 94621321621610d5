// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"errors"
	"syscall"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"

	"github.com/keyhole-agent/keyhole/secret"
)

// errStale is the answer about an inode that is no more: another version is
// current, or the view was forgotten. A path walk that meets ESTALE is repeated
// by the kernel, once, without its cache.
var errStale = errors.New("superseded")

// errnoOf is the one place where errors become errno. What is not in the table
// is EIO: the caller learns only that something is wrong with the agent.
func errnoOf(err error) gofuse.Status {
	if err == nil {
		return gofuse.OK
	}
	for _, row := range [...]struct {
		err   error
		errno syscall.Errno
	}{
		{errStale, syscall.ESTALE},
		{secret.ErrNotFound, syscall.ENOENT},        // absent, or not for the caller to know
		{secret.ErrInvalid, syscall.ENOENT},         // no secret can have such a name
		{secret.ErrDenied, syscall.EACCES},          // listed but not readable, or nobody's workload
		{secret.ErrUnauthenticated, syscall.EACCES}, // the caller's credential is invalid
		{secret.ErrExpired, syscall.EKEYEXPIRED},    // the secret's expires_at has passed
		{secret.ErrLimited, syscall.EAGAIN},         // too many callers wait to be identified
		{secret.ErrFull, syscall.EIO},               // the audit log takes no record
		{secret.ErrUnavailable, syscall.EIO},        // the broker or the store is down
		{secret.ErrSealed, syscall.EIO},             // the agent has no root key yet
		{secret.ErrTampered, syscall.EIO},           // the stored bytes are not those that were written
	} {
		if errors.Is(err, row.err) {
			return gofuse.Status(row.errno)
		}
	}
	return gofuse.EIO
}
