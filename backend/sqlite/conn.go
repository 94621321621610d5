// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"context"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"

	sqlite3 "github.com/mattn/go-sqlite3"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// maxStatements bounds the prepared statements of a connection. Those of a
// store are about a hundred; only Gets of ever new shapes come near.
const maxStatements = 512

// conn is a connection that one goroutine uses at a time. It speaks to the
// driver directly: database/sql in between costs a point read a third of its
// rate.
type conn struct {
	db         *sqlite3.SQLiteConn
	statements map[string]*sqlite3.SQLiteStmt // by their text, or by the shape of a Get
	args       []driver.NamedValue            // reused from call to call
	background context.Context                // for what is not to be cancelled
}

// errEnough ends rows early, from within.
var errEnough = errors.New("enough rows")

// mode is what a connection may do.
type mode int

const (
	reading mode = iota
	writing
	creating // like writing, before the database is in WAL mode
)

// connect opens the database at path, which exists.
func connect(ctx context.Context, path string, m mode) (*conn, error) {
	options := url.Values{
		"_mutex":         {"no"},   // a conn is used by one goroutine at a time
		"_busy_timeout":  {"5000"}, // for a reader of another program; there is one writer
		"_cache_size":    {"-8000"},
		"_secure_delete": {"on"},
		"_synchronous":   {"full"},
	}
	switch m {
	case reading:
		options.Set("mode", "ro")
		options.Set("_query_only", "on")
	case writing, creating:
		options.Set("mode", "rw") // never makes a file: those would not be 0600
		options.Set("_txlock", "immediate")
		options.Set("_auto_vacuum", "incremental")
	}
	dsn := url.URL{Scheme: "file", OmitHost: true, Path: path, RawQuery: options.Encode()}
	opened, err := (&sqlite3.SQLiteDriver{}).Open(dsn.String())
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", path, translate(err))
	}
	db, ok := opened.(*sqlite3.SQLiteConn)
	if !ok {
		return nil, errors.Join(errors.New("the SQLite driver made a connection of another kind"), opened.Close())
	}
	c := &conn{db: db, statements: map[string]*sqlite3.SQLiteStmt{}, background: context.WithoutCancel(ctx)}
	if err := c.configure(m); err != nil {
		return nil, errors.Join(fmt.Errorf("opening %s: %w", path, err), c.close())
	}
	return c, nil
}

// configure sets what the driver has no option for, and reads everything back
// on which a guarantee rests: SQLite ignores a pragma that it cannot follow.
func (c *conn) configure(m mode) error {
	pragmas := []string{
		"trusted_schema = OFF",          // no function of a planted view or index runs
		"cell_size_check = ON",          // a damaged page is noticed when it is read
		"temp_store = MEMORY",           // nothing of a store in /tmp
		"mmap_size = 0",                 // a disk error is an error, not SIGBUS
		"wal_autocheckpoint = 4000",     // pages; 16 MiB
		"journal_size_limit = 16777216", // bytes that the WAL shrinks to after a burst
	}
	if m == writing {
		pragmas = append(pragmas, "journal_mode = WAL") // a restored copy is not in it
	}
	for _, pragma := range pragmas {
		if err := c.query(c.background, "PRAGMA "+pragma, 1, func([]driver.Value) error { return nil }); err != nil {
			return err
		}
	}
	wanted := map[string]string{"trusted_schema": "0", "cell_size_check": "1", "temp_store": "2", "synchronous": "2", "secure_delete": "1"}
	switch m {
	case reading:
		wanted["query_only"] = "1"
		wanted["journal_mode"] = "wal"
	case writing:
		wanted["journal_mode"] = "wal"
		wanted["auto_vacuum"] = "2"
	case creating:
		wanted["auto_vacuum"] = "2"
	}
	for pragma, want := range wanted {
		got, err := c.pragma(pragma)
		if err != nil {
			return err
		}
		if got != want {
			return fmt.Errorf("%w: SQLite's %s is %s and could not be made %s", secret.ErrTampered, pragma, got, want)
		}
	}
	return nil
}

// prepared returns the statement known as name, whose text is made when needed.
func (c *conn) prepared(name string, text func() string) (*sqlite3.SQLiteStmt, error) {
	if s, ok := c.statements[name]; ok {
		return s, nil
	}
	if len(c.statements) >= maxStatements {
		if err := c.finalize(); err != nil {
			return nil, err
		}
	}
	made, err := c.db.Prepare(text())
	if err != nil {
		return nil, translate(err)
	}
	s, ok := made.(*sqlite3.SQLiteStmt)
	if !ok {
		return nil, errors.Join(errors.New("the SQLite driver made a statement of another kind"), made.Close())
	}
	c.statements[name] = s
	return s, nil
}

func (c *conn) bind(args []driver.Value) []driver.NamedValue {
	c.args = c.args[:0]
	for i, v := range args {
		c.args = append(c.args, driver.NamedValue{Ordinal: i + 1, Value: v})
	}
	return c.args
}

// exec runs a prepared statement without rows and returns how many it changed.
func (c *conn) exec(text string, args ...driver.Value) (int64, error) {
	s, err := c.prepared(text, func() string { return text })
	if err != nil {
		return 0, err
	}
	result, err := s.ExecContext(c.background, c.bind(args))
	if err != nil {
		return 0, translate(err)
	}
	return result.RowsAffected()
}

// once runs a statement that is not needed again.
func (c *conn) once(text string) error {
	_, err := c.db.Exec(text, nil)
	return translate(err)
}

// query calls each with the rows of a prepared statement; row is reused.
func (c *conn) query(ctx context.Context, text string, columns int, each func(row []driver.Value) error, args ...driver.Value) error {
	s, err := c.prepared(text, func() string { return text })
	if err != nil {
		return err
	}
	return c.rows(ctx, s, c.bind(args), make([]driver.Value, columns), each)
}

func (c *conn) rows(ctx context.Context, s *sqlite3.SQLiteStmt, args []driver.NamedValue, row []driver.Value, each func(row []driver.Value) error) (err error) {
	rows, err := s.QueryContext(ctx, args)
	if err != nil {
		return translate(err)
	}
	defer func() {
		// Close repeats the error that ended the rows.
		if closing := rows.Close(); err == nil {
			err = translate(closing)
		}
	}()
	for {
		switch err := rows.Next(row); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil && ctx.Err() != nil:
			return ctx.Err()
		case err != nil:
			return translate(err)
		}
		switch err := each(row); {
		case errors.Is(err, errEnough):
			return nil
		case err != nil:
			return err
		}
	}
}

// pragma returns the value of a pragma as text.
func (c *conn) pragma(name string) (value string, err error) {
	err = c.query(c.background, "PRAGMA "+name, 1, func(row []driver.Value) error {
		value = fmt.Sprint(row[0])
		return nil
	})
	return value, err
}

func (c *conn) number(name string) (int, error) {
	text, err := c.pragma(name)
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(text)
}

// transaction runs do between BEGIN IMMEDIATE (a plain BEGIN on a reader) and
// COMMIT, or rolls back when it fails.
func (c *conn) transaction(do func() error) error {
	if err := c.begin(); err != nil {
		return err
	}
	if err := do(); err != nil {
		return errors.Join(err, c.rollback())
	}
	return c.commit()
}

func (c *conn) begin() error {
	_, err := c.exec("BEGIN IMMEDIATE")
	return err
}

func (c *conn) commit() error {
	if _, err := c.exec("COMMIT"); err != nil {
		return errors.Join(err, c.rollback())
	}
	return nil
}

// rollback ends a transaction, unless SQLite already did because of an error.
func (c *conn) rollback() error {
	if c.db.AutoCommit() {
		return nil
	}
	_, err := c.exec("ROLLBACK")
	return err
}

// snapshot runs do with all its reads at one point in time.
func (c *conn) snapshot(do func() error) error {
	if _, err := c.exec("BEGIN"); err != nil {
		return err
	}
	return errors.Join(do(), c.rollback())
}

func (c *conn) finalize() error {
	var failed []error
	for name, s := range c.statements {
		failed = append(failed, s.Close())
		delete(c.statements, name)
	}
	return errors.Join(failed...)
}

func (c *conn) close() error {
	return errors.Join(c.finalize(), c.db.Close())
}

// record reads rev, parent, empty, due, term and body. NULL reads as zero.
func record(key backend.Key, row []driver.Value) (backend.Record, error) {
	var d decoder
	r := backend.Record{
		Key: key,
		Rev: backend.Seq(d.count(row[0])),
		Hints: backend.Hints{
			Parent: string(d.bytes(row[1])),
			Empty:  d.integer(row[2]),
			Due:    d.integer(row[3]),
			Term:   uint32(d.count(row[4])),
		},
		Body: d.bytes(row[5]),
	}
	return r, d.err
}

// decoder reads columns; STRICT tables hold nothing else, unless damaged.
type decoder struct{ err error }

func (d *decoder) integer(v driver.Value) int64 {
	n, ok := v.(int64)
	if !ok && v != nil {
		d.err = fmt.Errorf("%w: the store has a %T where a number belongs", secret.ErrTampered, v)
	}
	return n
}

func (d *decoder) count(v driver.Value) uint64 {
	n := d.integer(v)
	if n < 0 {
		d.err = fmt.Errorf("%w: the store has the number %d where none is negative", secret.ErrTampered, n)
		return 0
	}
	return uint64(n)
}

func (d *decoder) bytes(v driver.Value) []byte {
	b, ok := v.([]byte)
	if !ok && v != nil {
		d.err = fmt.Errorf("%w: the store has a %T where bytes belong", secret.ErrTampered, v)
	}
	return b
}
