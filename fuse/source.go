// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"context"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Names is how a view looks to the identity that it was made for. Neither
// method waits for anything but the local store.
type Names interface {
	// Folder returns what view may list directly in folder, in byte order.
	// An unknown or invisible folder is empty.
	Folder(ctx context.Context, view identity.Caller, folder secret.Path) ([]secret.Entry, error)

	// Look describes one name. The Info is zero for a folder. What view may not
	// list is secret.ErrNotFound, and has been audited if it exists.
	Look(ctx context.Context, view identity.Caller, path secret.Path) (secret.Entry, secret.Info, error)
}

// Files is the way to the bytes.
type Files interface {
	// Open authorizes and audits the opening of file by caller, through the
	// view of view. Both must be allowed to read it: a view shows no more than
	// its identity may read, also to those who may read more.
	//
	// Errors: secret.ErrDenied for what may be listed and not read,
	// secret.ErrNotFound when the version is no longer served or the caller may
	// not know, and those of the store.
	Open(ctx context.Context, caller, view identity.Caller, file secret.File) error

	// Read returns the values behind a file that was opened, as view; denials
	// are audited, successes were when it was opened. The caller wipes them.
	Read(ctx context.Context, view identity.Caller, file secret.File) (secret.Values, error)
}

// Refusals is told of requests that were refused before a caller was known.
type Refusals interface {
	// Refuse audits the refusal. Its error means that this was not possible.
	Refuse(ctx context.Context, unknown identity.Caller, operation string, reason error) error
}

// Feed tells what to look at again.
type Feed interface {
	// Next waits until something changed since the last call and returns it.
	// Its error is that of ctx, or says that the feed ended.
	Next(ctx context.Context) (secret.Changes, error)
}
