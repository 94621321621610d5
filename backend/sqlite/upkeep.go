// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"context"
	"database/sql/driver"
	"fmt"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

const (
	vacuumPages = 1000    // free pages that Compact gives back between two commits
	minFree     = 1 << 20 // bytes of free disk below which Health warns
)

// Health returns nil when the store can be read and written. It looks at the
// files, reads, and wants 1 MiB of free disk, below which it returns
// secret.ErrFull though smaller commits still succeed. After a write that
// failed it also writes, since only that tells whether the next one would.
func (b *Backend) Health(ctx context.Context) error {
	if _, err := b.Info(ctx); err != nil {
		return fmt.Errorf("reading the store: %w", err)
	}
	if err := b.files.unmoved(); err != nil {
		return err
	}
	if b.failing.Load() {
		if err := b.write(ctx, (*conn).touch); err != nil {
			return fmt.Errorf("writing to the store: %w", err)
		}
	}
	for _, path := range []string{filepath.Dir(b.path), b.path} {
		if err := unix.Access(path, unix.W_OK); err != nil {
			return fmt.Errorf("%w: %s cannot be written: %w", secret.ErrUnavailable, path, err)
		}
	}
	var disk unix.Statfs_t
	if err := unix.Statfs(b.path, &disk); err != nil {
		return fmt.Errorf("looking at the store's disk: %w", err)
	}
	if free := disk.Bavail * uint64(disk.Bsize); free < minFree {
		return fmt.Errorf("%w: %d bytes are left on the store's disk", secret.ErrFull, free)
	}
	return nil
}

// touch writes and changes nothing. SQLite would not write a row that stays the
// same, so it is changed there and back.
func (c *conn) touch() error {
	return c.transaction(func() error {
		if _, err := c.exec(`UPDATE store SET epoch = epoch + 1`); err != nil {
			return err
		}
		_, err := c.exec(`UPDATE store SET epoch = epoch - 1`)
		return err
	})
}

// Compact gives free pages back to the filesystem and empties the WAL, which
// holds pages as they were before. Commits pass between its steps.
func (b *Backend) Compact(ctx context.Context) error {
	for more := true; more; {
		err := b.write(ctx, func(c *conn) (err error) {
			more, err = c.vacuum()
			return err
		})
		if err != nil {
			return fmt.Errorf("compacting the store: %w", err)
		}
	}
	if err := b.write(ctx, (*conn).checkpoint); err != nil {
		return fmt.Errorf("compacting the store: %w", err)
	}
	// SQLite does not sync an emptied WAL, so a power cut could bring back what
	// was erased. Nobody locks that file, so closing it takes no lock away.
	if err := syncFile(b.path + "-wal"); err != nil {
		return fmt.Errorf("compacting the store: %w", err)
	}
	return nil
}

// vacuum gives back some free pages and tells whether there are more.
func (c *conn) vacuum() (more bool, err error) {
	before, err := c.number("freelist_count")
	if err != nil || before == 0 {
		return false, err
	}
	// Each row is one page given back.
	text := fmt.Sprintf("PRAGMA incremental_vacuum(%d)", vacuumPages)
	if err := c.query(c.background, text, 0, func([]driver.Value) error { return nil }); err != nil {
		return false, err
	}
	after, err := c.number("freelist_count")
	return 0 < after && after < before, err
}

// checkpoint brings the WAL into the database, syncs both and empties the WAL.
func (c *conn) checkpoint() error {
	return c.query(c.background, "PRAGMA wal_checkpoint(TRUNCATE)", 3, func(row []driver.Value) error {
		if row[0] != int64(0) {
			return fmt.Errorf("%w: another program reads the store and keeps its WAL from being emptied", secret.ErrUnavailable)
		}
		return nil
	})
}

// Check reads the whole store: its pages, its indexes, and whether its records
// agree with its sequence number.
func (b *Backend) Check(ctx context.Context) error {
	err := b.read(ctx, func(c *conn) error {
		// integrity_check answers with one row "ok", or one row per finding.
		err := c.query(ctx, "PRAGMA integrity_check(10)", 1, func(row []driver.Value) error {
			if finding := fmt.Sprint(row[0]); finding != "ok" {
				return fmt.Errorf("%w: %s is damaged; restore it from a backup: %s", secret.ErrTampered, b.path, finding)
			}
			return nil
		})
		if err != nil {
			return err
		}
		if err := b.schema.verify(c); err != nil {
			return err
		}
		return c.snapshot(func() error { return c.checkRevisions(ctx) })
	})
	if err != nil {
		return fmt.Errorf("checking the store: %w", err)
	}
	return nil
}

func (c *conn) checkRevisions(ctx context.Context) error {
	state, err := c.state()
	if err != nil {
		return err
	}
	for _, t := range backend.Tables {
		text := fmt.Sprintf("SELECT count(*) FROM %s WHERE rev NOT BETWEEN 1 AND ?", t)
		err := c.query(ctx, text, 1, func(row []driver.Value) error {
			if row[0] != int64(0) {
				return fmt.Errorf("%w: %v records of %s have revisions that the store did not reach", secret.ErrTampered, row[0], t)
			}
			return nil
		}, int64(state.seq))
		if err != nil {
			return err
		}
	}
	return nil
}
