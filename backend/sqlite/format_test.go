// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// golden is a store of the current format, made by
//
//	go test ./backend/sqlite -run TestAGoldenStoreOpens -update
//
// once for each format that is released, and kept forever.
var update = flag.Bool("update", false, "write the golden store of the current format")

func goldenPath(format int) string {
	return filepath.Join("testdata", fmt.Sprintf("format-%d.db", format))
}

// goldenBatches fill a golden store; their results follow from the port.
func goldenBatches() []backend.Batch {
	var all []backend.Op
	for _, table := range backend.Tables {
		if table == backend.Applied {
			continue
		}
		all = append(all,
			backend.Op{Record: backend.Record{
				Key:   backend.Key{Table: table, ID: "\x00" + table.String() + "\xff"},
				Hints: backend.Hints{Parent: "p\x00", Empty: 1_700_000_000, Due: -1, Term: 1<<32 - 1},
				Body:  bytes.Repeat([]byte{0, 0xff}, 700),
			}},
			backend.Op{Record: backend.Record{Key: backend.Key{Table: table, ID: "bare"}}})
	}
	gone := backend.Op{Record: backend.Record{Key: backend.Key{Table: backend.Policies, ID: "bare"}}, Delete: true}
	return []backend.Batch{{ID: [16]byte{1}, Ops: all}, {ID: [16]byte{2}, Ops: []backend.Op{gone}}}
}

func requireGolden(t *testing.T, b *Backend) {
	t.Helper()
	info, err := b.Info(t.Context())
	if err != nil || info.Seq != 2 || info.StoreID == [16]byte{} || info.Epoch != 1 {
		t.Errorf("Info is %+v, %v", info, err)
	}
	var want []backend.Record
	var keys []backend.Key
	for _, op := range goldenBatches()[0].Ops {
		keys = append(keys, op.Record.Key)
		if op.Record.Key != goldenBatches()[1].Ops[0].Record.Key {
			op.Record.Rev = 1
			want = append(want, op.Record)
		}
	}
	got, _, err := b.Get(t.Context(), keys)
	if err != nil || !slices.EqualFunc(got, want, func(a, b backend.Record) bool {
		return a.Key == b.Key && a.Rev == b.Rev && a.Hints == b.Hints && bytes.Equal(a.Body, b.Body)
	}) {
		t.Errorf("records are %v, %v", got, err)
	}
	for i, r := range mustCommit(t, b, goldenBatches()...) {
		if !r.Replayed || r.Seq != backend.Seq(i+1) {
			t.Errorf("batch %d again: %+v", i, r)
		}
	}
	changes, err := b.Changes(t.Context(), 0, 100)
	if err != nil || len(changes) != len(keys)+1 {
		t.Errorf("%d changes, %v", len(changes), err)
	}
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
	mustCommit(t, b, putting("new", []byte("x")))
}

// copyStore copies a store file to where it can be opened and changed.
func copyStore(t *testing.T, from string) (path string) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	path = newPath(t)
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o700), os.WriteFile(path, content, 0o600)); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestAGoldenStoreOfEachFormatOpens(t *testing.T) {
	if *update {
		path := newPath(t)
		b, err := Open(Config{Path: path, Now: func() time.Time { return time.Unix(1_700_000_000, 0) }})
		if err != nil {
			t.Fatal(err)
		}
		mustCommit(t, b, goldenBatches()...)
		closeNow(t, b)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(goldenPath(currentFormat), content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for format := 1; format <= currentFormat; format++ {
		requireGolden(t, openStore(t, copyStore(t, goldenPath(format))))
	}
}

// inventedSchema has two formats after the first.
func inventedSchema() schema {
	second := `CREATE TABLE second(id BLOB PRIMARY KEY NOT NULL) STRICT`
	third := `CREATE INDEX third ON second(id)`
	return schema{
		format:   3,
		create:   append(format1(), second, third),
		upgrades: map[int][]string{1: {second}, 2: {`INSERT INTO second(id) VALUES(x'01')`, third}},
	}
}

func TestAnOlderStoreIsCopiedAndUpgraded(t *testing.T) {
	path := copyStore(t, goldenPath(1))
	b, err := open(t.Context(), Config{Path: path}, inventedSchema())
	if err != nil {
		t.Fatal(err)
	}
	if info, err := b.Info(t.Context()); err != nil || info.Format != 3 {
		t.Errorf("Info is %+v, %v", info, err)
	}
	requireGolden(t, b)
	closeNow(t, b)
	if _, err := Open(Config{Path: path}); !errors.Is(err, secret.ErrNewerFormat) || !strings.Contains(err.Error(), "format 3") {
		t.Errorf("opening it as an older version: %v", err)
	}

	copied := path + ".format-1.backup"
	if info, err := os.Stat(copied); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the copy: %v, %v", info, err)
	}
	requireGolden(t, openStore(t, copyStore(t, copied)))
}

func TestAFailedUpgradeChangesNothing(t *testing.T) {
	path := copyStore(t, goldenPath(1))
	broken := inventedSchema()
	broken.upgrades[2] = []string{`INSERT INTO second(id) VALUES(x'01')`, `CREATE INDEX third ON nothing(id)`}
	if _, err := open(t.Context(), Config{Path: path}, broken); err == nil {
		t.Fatal("a broken upgrade succeeded")
	}
	delete(broken.upgrades, 2)
	if _, err := open(t.Context(), Config{Path: path}, broken); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("an upgrade that nobody wrote: %v", err)
	}
	requireGolden(t, openStore(t, path)) // still of format 1
}

func TestWhatIsNoSoundStoreIsRefused(t *testing.T) {
	alter := func(statement string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			c, err := connect(t.Context(), path, writing)
			if err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(c.once(statement), c.close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	overwrite := func(offset int64, with string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			file, err := os.OpenFile(path, os.O_WRONLY, 0)
			if err != nil {
				t.Fatal(err)
			}
			_, err = file.WriteAt([]byte(with), offset)
			if err := errors.Join(err, file.Close()); err != nil {
				t.Fatal(err)
			}
		}
	}
	truncate := func(size int64) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			if err := os.Truncate(path, size); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		spoil func(t *testing.T, path string)
		want  error
	}{
		"empty":               {truncate(0), secret.ErrTampered},
		"cut in its header":   {truncate(50), secret.ErrTampered},
		"cut in its schema":   {truncate(4096), secret.ErrTampered},
		"other text":          {overwrite(0, "Dear diary, today"), secret.ErrInvalid},
		"another application": {alter("PRAGMA application_id = 7"), secret.ErrInvalid},
		"a newer format":      {alter("PRAGMA user_version = 2"), secret.ErrNewerFormat},
		"a format 0":          {alter("PRAGMA user_version = 0"), secret.ErrTampered},
		"a planted trigger": {alter("CREATE TRIGGER t AFTER INSERT ON secrets BEGIN DELETE FROM policies; END"),
			secret.ErrTampered},
		"a planted view":    {alter("CREATE VIEW v AS SELECT * FROM secrets"), secret.ErrTampered},
		"a lost index":      {alter("DROP INDEX secrets_due"), secret.ErrTampered},
		"no identity":       {alter("DELETE FROM store"), secret.ErrTampered},
		"a damaged schema":  {overwrite(100, strings.Repeat("\xff", 500)), secret.ErrTampered},
		"a wrong page size": {overwrite(16, "\x00\x03"), secret.ErrTampered},
	} {
		t.Run(name, func(t *testing.T) {
			path := copyStore(t, goldenPath(currentFormat))
			c.spoil(t, path)
			b, err := Open(Config{Path: path})
			if err == nil {
				closeNow(t, b)
			}
			if !errors.Is(err, c.want) {
				t.Errorf("Open: %v, want %v", err, c.want)
			}
		})
	}
}

func TestANonRegularFileIsRefused(t *testing.T) {
	path := copyStore(t, goldenPath(currentFormat))
	if err := errors.Join(os.Rename(path, path+".real"), os.Symlink(path+".real", path)); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(Config{Path: path}); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("Open: %v", err)
	}
}

func TestADamagedPageIsFound(t *testing.T) {
	path := newPath(t)
	b := openStore(t, path)
	for i := range 200 {
		mustCommit(t, b, putting(fmt.Sprintf("%04d", i), bytes.Repeat([]byte("x"), 500)))
	}
	closeNow(t, b)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	page := bytes.Index(content, bytes.Repeat([]byte("x"), 500)) &^ 4095
	copy(content[page:], bytes.Repeat([]byte{0xff}, 300))
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	b = openStore(t, path)
	if err := b.Check(t.Context()); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("Check: %v", err)
	}
	_, err = b.Scan(t.Context(), backend.Query{Table: backend.Secrets, Limit: 1000})
	if !errors.Is(err, secret.ErrTampered) {
		t.Errorf("Scan: %v", err)
	}
}

func TestARecordFromTheFutureIsFound(t *testing.T) {
	b := openStore(t, newPath(t))
	mustCommit(t, b, putting("a", nil))
	err := b.write(t.Context(), func(c *conn) error { return c.once("UPDATE secrets SET rev = 99") })
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Check(t.Context()); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("Check: %v", err)
	}
}

func TestABatchIDIsForgottenAfterADay(t *testing.T) {
	now := time.Unix(1_700_000_000, 0)
	b, err := Open(Config{Path: newPath(t), Now: func() time.Time { return now }})
	if err != nil {
		t.Fatal(err)
	}
	defer closeNow(t, b)
	id := [16]byte{1}
	first := backend.Batch{ID: id}
	mustCommit(t, b, first)
	key := backend.Key{Table: backend.Applied, ID: string(id[:])}
	for _, step := range []struct {
		after time.Duration
		known int
	}{{backend.KeptBatches - time.Second, 1}, {time.Second, 1}, {time.Second, 0}} {
		now = now.Add(step.after)
		for range trimEvery { // somewhere in here it is looked for
			mustCommit(t, b, backend.Batch{})
		}
		records, _, err := b.Get(t.Context(), []backend.Key{key})
		if err != nil || len(records) != step.known {
			t.Fatalf("%v later: %v, %v", step.after, records, err)
		}
		if step.known == 1 && records[0].Hints.Due != 1_700_000_000 {
			t.Errorf("it was committed at %d", records[0].Hints.Due)
		}
	}
	if r := mustCommit(t, b, first)[0]; r.Replayed {
		t.Errorf("a forgotten batch: %+v", r)
	}
}
