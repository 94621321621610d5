// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"crypto/rand"
	"database/sql/driver"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// A store of format 1, as SQLite database:
//
//	application_id   0x4B657968, "Keyh"
//	user_version     the format
//	auto_vacuum      incremental
//	journal_mode     wal
//
//	store            one row: id (16 random bytes), epoch, seq of the last batch,
//	                 floor (changes up to it are gone), changes (how many there are)
//	changes          one row per changed key: seq of the batch, n within it,
//	                 tbl (backend.Table), id, deleted (0 or 1)
//	meta, secrets, …, anchors, applied
//	                 one table per backend.Table, all of the same columns:
//	                 id, rev, parent, empty, due, term, body, where NULL stands
//	                 for no parent, not empty, not due, and no body
//
// A row of applied has the batch ID as id, the batch's seq as rev, and the Unix
// time of its commit as due.
const (
	applicationID = 0x4B657968
	currentFormat = 1
)

// schema is a format and how a store gets to it.
type schema struct {
	format   int
	create   []string         // make an empty store
	upgrades map[int][]string // lead from a format to the next
}

func currentSchema() schema {
	return schema{format: currentFormat, create: format1()}
}

func format1() []string {
	statements := []string{
		`CREATE TABLE store(one INTEGER PRIMARY KEY CHECK(one = 1), id BLOB NOT NULL, epoch INTEGER NOT NULL,` +
			` seq INTEGER NOT NULL, floor INTEGER NOT NULL, changes INTEGER NOT NULL) STRICT`,
		`CREATE TABLE changes(seq INTEGER NOT NULL, n INTEGER NOT NULL, tbl INTEGER NOT NULL, id BLOB NOT NULL,` +
			` deleted INTEGER NOT NULL, PRIMARY KEY(seq, n)) STRICT, WITHOUT ROWID`,
	}
	for _, t := range backend.Tables {
		// Small records live in the index of their IDs: one search finds them,
		// one page changes with them, and a scan reads in order. Payloads are
		// too large for that. Applied is trimmed by age, which is rowid order.
		options := "STRICT, WITHOUT ROWID"
		if t == backend.Payloads || t == backend.Applied {
			options = "STRICT"
		}
		statements = append(statements, fmt.Sprintf(`CREATE TABLE %s(id BLOB PRIMARY KEY NOT NULL, rev INTEGER NOT NULL,`+
			` parent BLOB, empty INTEGER, due INTEGER, term INTEGER NOT NULL, body BLOB) %s`, t, options))
		if t == backend.Applied {
			continue
		}
		// There is no index for ByTerm: it would cost each write a page, and
		// whoever asks is about to visit most records anyway.
		statements = append(statements,
			fmt.Sprintf(`CREATE INDEX %s_parent ON %s(parent, id) WHERE parent IS NOT NULL`, t, t),
			fmt.Sprintf(`CREATE INDEX %s_empty ON %s(empty, id) WHERE empty IS NOT NULL`, t, t),
			fmt.Sprintf(`CREATE INDEX %s_due ON %s(due, id) WHERE due IS NOT NULL`, t, t))
	}
	return statements
}

// build makes an empty store in the empty database of c.
func (s schema) build(c *conn) error {
	var id [16]byte
	if _, err := rand.Read(id[:]); err != nil {
		return fmt.Errorf("making a store ID: %w", err)
	}
	return c.transaction(func() error {
		for _, statement := range s.create {
			if err := c.once(statement); err != nil {
				return err
			}
		}
		_, err := c.exec(`INSERT INTO store(one, id, epoch, seq, floor, changes) VALUES(1, ?, 1, 0, 0, 0)`, id[:])
		if err != nil {
			return err
		}
		return c.stamp(s.format)
	})
}

// stamp marks the database as ours, of a format.
func (c *conn) stamp(format int) error {
	if err := c.once(fmt.Sprintf("PRAGMA application_id = %d", applicationID)); err != nil {
		return err
	}
	return c.once(fmt.Sprintf("PRAGMA user_version = %d", format))
}

// upgrade leads the store from a format to s.format, all steps or none.
func (s schema) upgrade(c *conn, from int) error {
	return c.transaction(func() error {
		for format := from; format < s.format; format++ {
			steps, known := s.upgrades[format]
			if !known {
				return fmt.Errorf("%w: a store of format %d, which no version upgrades", secret.ErrTampered, format)
			}
			for _, statement := range steps {
				if err := c.once(statement); err != nil {
					return fmt.Errorf("upgrading format %d to %d: %w", format, format+1, err)
				}
			}
		}
		return c.stamp(s.format)
	})
}

// verify returns secret.ErrTampered unless the database has the tables and
// indexes of s, and nothing else.
func (s schema) verify(c *conn) error {
	wanted := map[string]bool{}
	object := regexp.MustCompile(`^CREATE (TABLE|INDEX) (\w+)`)
	for _, statement := range s.create {
		if m := object.FindStringSubmatch(statement); m != nil {
			wanted[strings.ToLower(m[1])+" "+m[2]] = true
		}
	}
	err := c.query(c.background, `SELECT type, name FROM sqlite_schema WHERE name NOT GLOB 'sqlite_autoindex_*'`, 2,
		func(row []driver.Value) error {
			name := fmt.Sprintf("%s %s", row[0], row[1])
			if !wanted[name] {
				return fmt.Errorf("%w: the store has a %s, which is not Keyhole's", secret.ErrTampered, name)
			}
			delete(wanted, name)
			return nil
		})
	if err != nil {
		return err
	}
	if missing := slices.Sorted(maps.Keys(wanted)); len(missing) > 0 {
		return fmt.Errorf("%w: the store lacks its %s", secret.ErrTampered, missing[0])
	}
	return nil
}
