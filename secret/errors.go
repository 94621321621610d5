// SPDX-License-Identifier: Apache-2.0

package secret

import "errors"

// The errors that callers tell apart. Each edge (the socket's status codes, the
// filesystem's errno, the exit codes of the command line) translates them once.
var (
	ErrInvalid         = errors.New("invalid")                      // malformed input: path, key, pattern, configuration
	ErrTooLarge        = errors.New("too large")                    // values or a request beyond the limits
	ErrNotFound        = errors.New("not found")                    // absent, and the caller may know it
	ErrDenied          = errors.New("permission denied")            // the policy does not allow it, or the caller may not know
	ErrUnauthenticated = errors.New("not authenticated")            // an offered credential is invalid, or there is none
	ErrConflict        = errors.New("version conflict")             // the expected version is not the current one
	ErrExists          = errors.New("path is taken")                // a path is a secret or a folder, never both
	ErrExpired         = errors.New("expired")                      // the secret's expires_at has passed
	ErrSealed          = errors.New("sealed")                       // the agent does not hold the root key
	ErrUnavailable     = errors.New("unavailable")                  // a dependency is down; trying again may help
	ErrLimited         = errors.New("limit reached")                // too many requests at once
	ErrFull            = errors.New("no space left")                // on the disk of the store or of the audit log; nothing was written
	ErrTampered        = errors.New("record failed authentication") // stored bytes were changed, swapped or cut
	ErrNewerFormat     = errors.New("written by a newer version")   // a store this binary is too old for
	ErrInUse           = errors.New("in use by another agent")      // a store, socket or mount has an owner
)

// errText is an error without an identity of its own, for wrapping.
type errText string

func (e errText) Error() string { return string(e) }
