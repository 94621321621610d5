// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"

	"github.com/keyhole-agent/keyhole/secret"
)

// The exit codes. Scripts depend on them.
const (
	exitDone        = 0 // also when a question was answered with no
	exitFailed      = 1
	exitUsage       = 2
	exitNotFound    = 3 // or expired
	exitDenied      = 4
	exitUnavailable = 5 // or sealed
	exitConflict    = 6
)

// exitCode is the one table from errors to exit codes.
func exitCode(err error) int {
	for _, row := range []struct {
		err  error
		code int
	}{
		{secret.ErrNotFound, exitNotFound},
		{secret.ErrExpired, exitNotFound},
		{secret.ErrDenied, exitDenied},
		{secret.ErrUnauthenticated, exitDenied},
		{secret.ErrSealed, exitUnavailable},
		{secret.ErrUnavailable, exitUnavailable},
		{secret.ErrLimited, exitUnavailable},
		{secret.ErrFull, exitUnavailable},
		{context.DeadlineExceeded, exitUnavailable},
		{secret.ErrConflict, exitConflict},
		{secret.ErrExists, exitConflict},
		{secret.ErrInvalid, exitUsage},
		{secret.ErrTooLarge, exitUsage},
	} {
		if errors.Is(err, row.err) {
			return row.code
		}
	}
	if _, ok := errors.AsType[usageError](err); ok {
		return exitUsage
	}
	return exitFailed
}
