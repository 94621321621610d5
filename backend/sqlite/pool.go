// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"context"

	"github.com/keyhole-agent/keyhole/backend"
)

// take waits for a connection of a pool. After Close there is none.
func (b *Backend) take(ctx context.Context, pool chan *conn) (*conn, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	select {
	case <-b.closing:
		return nil, backend.ErrClosed
	default:
	}
	select {
	case c := <-pool:
		return c, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	case <-b.closing:
		return nil, backend.ErrClosed
	}
}

// read lends a reader.
func (b *Backend) read(ctx context.Context, do func(*conn) error) error {
	c, err := b.take(ctx, b.readers)
	if err != nil {
		return err
	}
	defer func() { b.readers <- c }()
	return do(c)
}

// write lends the writer, and notices how it went.
func (b *Backend) write(ctx context.Context, do func(*conn) error) error {
	c, err := b.take(ctx, b.writer)
	if err != nil {
		return err
	}
	defer func() { b.writer <- c }()
	if err = b.files.unmoved(); err == nil {
		err = do(c)
	}
	if err == nil {
		// What was synced before this is in the files that have the names.
		err = b.files.unmoved()
	}
	b.failing.Store(err != nil)
	return err
}
