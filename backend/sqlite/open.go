// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// Names beside the store's own.
const (
	lockSuffix  = ".lock"   // whose the store is
	newSuffix   = ".new"    // a store or a backup that is being made
	maxReaders  = 64        // connections that read
	minSQLite   = 3_051_003 // older ones can corrupt a WAL when a checkpoint and a reset race
	readersUpTo = 4         // by default, on machines with more cores
)

// Config says which store to open.
type Config struct {
	Path      string           // of the database, in a folder that only its owner can write; required
	MustExist bool             // secret.ErrNotFound instead of making a new store
	Readers   int              // connections for reading, at most 64; 0 is one per core, up to 4
	Now       func() time.Time // for how long batch IDs are known; nil is time.Now
}

// Backend is an open store.
type Backend struct {
	path   string
	now    func() time.Time
	schema schema
	files  identities
	lock   *lock

	storeID [16]byte
	epoch   uint64

	// Connections wait here for whoever needs one. There is one writer.
	readers chan *conn
	writer  chan *conn
	opened  int  // readers that there are
	writes  bool // there is a writer

	failing atomic.Bool // the last write failed; Health tries one of its own
	closing chan struct{}
	once    sync.Once
}

var (
	_ backend.Backend   = (*Backend)(nil)
	_ backend.Compacter = (*Backend)(nil)
	_ backend.Checker   = (*Backend)(nil)
)

// Open opens the store at config.Path, making it, and its folder, when there is
// none. A store of an older format is upgraded; a copy of it remains beside it as
// PATH.format-N.backup, for the operator to keep or destroy.
//
// Errors: secret.ErrInvalid for a file that is not a Keyhole store, or a folder
// or file that others can write; secret.ErrInUse; secret.ErrNewerFormat;
// secret.ErrTampered for a damaged store; secret.ErrUnavailable for one that
// cannot be read or written; secret.ErrFull.
func Open(config Config) (*Backend, error) {
	return open(context.Background(), config, currentSchema())
}

func open(ctx context.Context, config Config, s schema) (*Backend, error) {
	b := &Backend{now: config.Now, schema: s, closing: make(chan struct{})}
	if b.now == nil {
		b.now = time.Now // the only clock of this package
	}
	if version, number, _ := sqlite3.Version(); number < minSQLite {
		return nil, fmt.Errorf("%w: built with SQLite %s; it must be 3.51.3 or later", secret.ErrInvalid, version)
	}
	readers := config.Readers
	if readers == 0 {
		readers = min(readersUpTo, runtime.GOMAXPROCS(0))
	}
	if config.Path == "" || readers < 1 || readers > maxReaders {
		return nil, fmt.Errorf("%w: a store needs a path and 1 to %d readers", secret.ErrInvalid, maxReaders)
	}
	path, err := filepath.Abs(config.Path)
	if err != nil {
		return nil, fmt.Errorf("finding the store: %w", err)
	}
	b.path = path
	b.readers, b.writer = make(chan *conn, readers), make(chan *conn, 1)
	if err := prepareFolder(filepath.Dir(path)); err != nil {
		return nil, err
	}
	if b.lock, err = acquire(path + lockSuffix); err != nil {
		return nil, err
	}
	if err := b.start(ctx, config.MustExist); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// start finds or makes the store and connects to it. The lock is held.
func (b *Backend) start(ctx context.Context, mustExist bool) error {
	found, err := present(b.path)
	if err != nil {
		return err
	}
	switch {
	case found:
		err = examine(b.path)
	case mustExist:
		err = fmt.Errorf("%w: there is no store at %s", secret.ErrNotFound, b.path)
	default:
		err = b.create(ctx)
	}
	if err != nil {
		return err
	}
	before, err := identify(b.path)
	if err != nil {
		return err
	}
	writer, err := connect(ctx, b.path, writing)
	if err != nil {
		return err
	}
	b.writer <- writer
	b.writes = true
	if err := b.settle(writer); err != nil {
		return err
	}
	for range cap(b.readers) {
		reader, err := connect(ctx, b.path, reading)
		if err != nil {
			return err
		}
		b.readers <- reader
		b.opened++
	}
	if err := before.unmoved(); err != nil {
		return err
	}
	b.files, err = identify(b.path, b.path+"-wal", b.path+"-shm", b.path+lockSuffix)
	return err
}

// settle leaves a store of the current format of which everything is durable.
func (b *Backend) settle(writer *conn) error {
	format, err := writer.number("user_version")
	if err != nil {
		return err
	}
	if format > b.schema.format {
		return fmt.Errorf("%w: %s is of format %d; this keyhole knows formats up to %d, so use a newer one",
			secret.ErrNewerFormat, b.path, format, b.schema.format)
	}
	// A process that was killed can have left batches in the WAL that nobody
	// synced. They are about to be seen, so they must stay: a checkpoint syncs.
	if err := writer.checkpoint(); err != nil {
		return err
	}
	if format < b.schema.format {
		if err := b.backup(writer, format); err != nil {
			return fmt.Errorf("copying the store before its upgrade: %w", err)
		}
		if err := b.schema.upgrade(writer, format); err != nil {
			return fmt.Errorf("upgrading the store: %w", err)
		}
	}
	if err := b.schema.verify(writer); err != nil {
		return err
	}
	state, err := writer.state()
	if err != nil {
		return err
	}
	b.storeID, b.epoch = state.id, state.epoch
	return nil
}

// create makes a new store under another name, so that there never is half of
// one under its own.
func (b *Backend) create(ctx context.Context) (err error) {
	temporary := b.path + newSuffix
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("making a store: %w", err), removeDatabase(temporary))
		}
	}()
	if err := removeDatabase(temporary); err != nil { // of a process that was killed
		return err
	}
	if err := makeFile(temporary); err != nil {
		return err
	}
	c, err := connect(ctx, temporary, creating)
	if err != nil {
		return err
	}
	err = b.schema.build(c)
	if err == nil {
		_, err = c.pragma("journal_mode = WAL")
	}
	if err := errors.Join(err, c.close()); err != nil {
		return err
	}
	return publish(temporary, b.path)
}

// backup copies the store to a file beside it.
func (b *Backend) backup(c *conn, format int) error {
	target := fmt.Sprintf("%s.format-%d.backup", b.path, format)
	temporary := target + newSuffix
	if err := removeDatabase(temporary); err != nil {
		return err
	}
	if err := makeFile(temporary); err != nil {
		return err
	}
	if _, err := c.exec("VACUUM INTO ?", temporary); err != nil {
		return errors.Join(err, removeDatabase(temporary))
	}
	return publish(temporary, target)
}

// publish gives a finished file its name, durably.
func publish(temporary, path string) error {
	if err := syncFile(temporary); err != nil {
		return err
	}
	if err := os.Rename(temporary, path); err != nil {
		return translate(err)
	}
	return syncFolder(filepath.Dir(path))
}

// Close waits for what is under way, closes the store and lets go of its lock.
// Closing again does nothing.
func (b *Backend) Close() error {
	var failed []error
	b.once.Do(func() {
		close(b.closing)
		for range b.opened { // the writer is last, and its checkpoint empties the WAL
			failed = append(failed, (<-b.readers).close())
		}
		if b.writes {
			failed = append(failed, (<-b.writer).close())
		}
		failed = append(failed, b.lock.release())
	})
	if err := errors.Join(failed...); err != nil {
		return fmt.Errorf("closing the store: %w", translate(err))
	}
	return nil
}
