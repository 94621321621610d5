// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	_ "github.com/mattn/go-sqlite3" // the file format, as others read it
)

// edit changes the database of a store that no agent has open, as somebody does
// who can write the file and has no key.
func edit(t *testing.T, path string, statements ...string) {
	t.Helper()
	db, err := sql.Open("sqlite3", path)
	if err != nil {
		t.Fatal(err)
	}
	db.SetMaxOpenConns(1) // temporary tables are a connection's own
	for _, statement := range statements {
		if _, err := db.ExecContext(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAStoreOfANewerVersionIsLeftAlone(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.storeSesame()
	d.kill()
	database := d.path("store", "keyhole.db")
	edit(t, database, "PRAGMA user_version = 99")
	launch(t, d.dir, run.keyhole, "dev", "--dir", d.dir).refuses(failed, database, "newer version", "99")
	if _, err := os.Lstat(d.path("env")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("env says that an agent is ready: %v", err)
	}
	edit(t, database, "PRAGMA user_version = 1")
	d = startDev(t, d.dir)
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
}

func TestAStoreThatIsNoneOrIsGoneIsNotMadeAnew(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	database, elsewhere := s.path("store", "keyhole.db"), s.path("elsewhere.db")
	s.launch("--store.path", s.path("nowhere", "keyhole.db")).refuses(notFound, s.path("nowhere", "keyhole.db"))
	if err := os.Rename(database, elsewhere); err != nil {
		t.Fatal(err)
	}
	s.launch().refuses(notFound, database)
	write(t, database, strings.Repeat("this is no database\n", 10), 0o600)
	s.launch().refuses(usage, database)
	if err := errors.Join(os.Rename(elsewhere, database), os.Chmod(database, 0o620)); err != nil {
		t.Fatal(err)
	}
	s.launch().refuses(usage, database, "0620", "chmod")
	if err := errors.Join(os.Chmod(database, 0o600), os.Chmod(s.path("store"), 0o770)); err != nil {
		t.Fatal(err)
	}
	s.launch().refuses(usage, s.path("store"), "0770", "chmod")
	if err := os.Chmod(s.path("store"), 0o700); err != nil {
		t.Fatal(err)
	}
	s.start().as(root).keyhole("secret", "list").ok()
}

func TestAStoreThatIsMovedAwayUnderTheAgentTakesNoWrites(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.storeSesame()
	if err := os.Rename(d.path("store"), d.path("moved")); err != nil {
		t.Fatal(err)
	}
	r := d.as(root)
	r.keyhole("secret", "put", "db/creds", "password=lost").fails(unavailable, "putting db/creds", "unavailable")
	r.keyhole("status").shows("store", "FAULT", "moved or deleted", d.path("store", "keyhole.db"))
	d.await("moved or deleted") // in the log, for the operator
	r.keyhole("secret", "get", "db/creds", "password").says(sesame)

	if err := os.Rename(d.path("moved"), d.path("store")); err != nil {
		t.Fatal(err)
	}
	r.keyhole("secret", "put", "db/creds", "password=kept").says("db/creds is now at version 2\n")
	r.keyhole("status").shows("store     ok")
	d.verifies()
	d.stop()
	d = startDev(t, d.dir)
	d.as(root).keyhole("secret", "get", "db/creds", "password").says("kept")
	d.as(root).keyhole("secret", "get", "db/creds", "password", "--version", "1").says(sesame)
	d.verifies()
}

// The damages that somebody can do who writes to the database. The secrets are
// s0 to s9, in the order in which they were put, one commit each; rows of one
// table are in that order by their revision.
var damages = []struct {
	what, statement string
	hit             []int // whom it hits
}{
	{"the records of two secrets swapped", swap("secrets", 0, 1), []int{0, 1}},
	{"the payloads of two versions swapped", swap("payloads", 2, 3), []int{2, 3}},
	{"the keys of two versions swapped", swap("versions", 4, 5), []int{4, 5}},
	{"a record cut", `UPDATE secrets SET body = substr(body, 1, 90) WHERE id = ` + nth("secrets", 6), []int{6}},
	{"a bit of a payload turned", `UPDATE payloads SET body = CAST(substr(body, 1, 20) || x'00ff' || substr(body, 23) AS BLOB) WHERE id = ` + nth("payloads", 7), []int{7}},
	{"a payload gone", `DELETE FROM payloads WHERE id = ` + nth("payloads", 8), []int{8}},
}

// nth is the ID of the record of the nth secret in a table.
func nth(table string, n int) string {
	return fmt.Sprintf(`(SELECT id FROM %s WHERE %s ORDER BY rev LIMIT 1 OFFSET %d)`, table, ofSecrets(table), n)
}

// ofSecrets leaves the folders out, whose records have the kind 2 in their
// second byte.
func ofSecrets(table string) string {
	if table == "secrets" {
		return `substr(body, 2, 1) = x'01'`
	}
	return `1`
}

func swap(table string, a, b int) string {
	return fmt.Sprintf(`CREATE TEMP TABLE pair AS SELECT %[2]s AS a, %[3]s AS b;
		CREATE TEMP TABLE other AS SELECT a AS id, (SELECT body FROM %[1]s WHERE id = b) AS body FROM pair
			UNION SELECT b, (SELECT body FROM %[1]s WHERE id = a) FROM pair;
		UPDATE %[1]s SET body = (SELECT body FROM other WHERE other.id = %[1]s.id) WHERE id IN (SELECT id FROM other);
		DROP TABLE pair; DROP TABLE other`, table, nth(table, a), nth(table, b))
}

func TestDamagedRecordsAreRefusedAndNamedAndTheOthersServed(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	const secrets = 10
	for i := range secrets {
		d.as(root).keyhole("secret", "put", fmt.Sprintf("many/s%d", i), fmt.Sprintf("key=the value of s%d", i)).ok()
	}
	d.stop()
	statements := []string{}
	hit := map[int]string{}
	for _, damage := range damages {
		statements = append(statements, damage.statement)
		for _, n := range damage.hit {
			hit[n] = damage.what
		}
	}
	edit(t, d.path("store", "keyhole.db"), statements...)

	d = startDev(t, d.dir)
	r := d.as(root)
	for i := range secrets {
		path, want := fmt.Sprintf("many/s%d", i), fmt.Sprintf("the value of s%d", i)
		if damage, damaged := hit[i]; damaged {
			t.Log(damage)
			r.keyhole("secret", "get", path, "key").fails(failed, path, "failed authentication")
			r.cat(d.file(path, "key")).cannot("Input/output error")
			d.mustHaveAudited(record{Operation: "get", Path: path, Decision: "error", Reason: "failed authentication"})
			continue
		}
		r.keyhole("secret", "get", path, "key").says(want)
		r.cat(d.file(path, "key")).says(want)
	}
	r.keyhole("status").shows("store", "FAULT", "3 stored records are refused")
	r.keyhole("secret", "put", "many/s9", "key=new").ok()
	r.keyhole("secret", "get", "many/s9", "key").says("new")
	r.keyhole("secret", "put", "many/s6", "key=new").fails(failed, "many/s6", "failed authentication")
	d.verifies()
}

// What is current is proven without the history, which is at the end of the
// record, and for those who ask about it.
func TestACutHistoryIsRefusedAndNotContinued(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.as(root).keyhole("secret", "put", "cut", "key=old").ok()
	d.as(root).keyhole("secret", "put", "cut", "key=current").ok()
	d.stop()
	edit(t, d.path("store", "keyhole.db"), `UPDATE secrets SET body = substr(body, 1, length(body) - 1)`)
	d = startDev(t, d.dir)
	r := d.as(root)
	r.keyhole("secret", "get", "cut", "key").says("current")
	r.keyhole("secret", "get", "cut", "key", "--version", "1").fails(failed, "cut", "failed authentication")
	r.keyhole("secret", "metadata", "cut").fails(failed, "cut", "failed authentication")
	r.keyhole("secret", "put", "cut", "key=new").fails(failed, "cut", "failed authentication")
	r.keyhole("secret", "delete", "cut").fails(failed, "cut", "failed authentication")
	r.keyhole("secret", "get", "cut", "key").says("current")
}

func TestADamagedDatabaseFileKeepsTheAgentFromStarting(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.storeSesame()
	d.stop()
	database := d.path("store", "keyhole.db")
	whole, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string]struct {
		content string
		words   []string
	}{
		"empty":             {"", []string{"0 bytes"}},
		"cut in the header": {string(whole[:50]), []string{"50 bytes"}},
		"cut":               {string(whole[:len(whole)/2]), []string{"damaged", "backup"}},
		"of zeros":          {string(make([]byte, len(whole))), []string{"not a SQLite database"}},
	} {
		write(t, database, c.content, 0o600)
		agent := launch(t, d.dir, run.keyhole, "dev", "--dir", d.dir)
		if agent.wait() == done {
			t.Errorf("a database that is %s was opened", what)
		}
		agent.refuses(agent.process.ProcessState.ExitCode(), append(c.words, database)...)
	}
	edit(t, writeBack(t, database, whole), "CREATE TABLE planted(x)")
	launch(t, d.dir, run.keyhole, "dev", "--dir", d.dir).refuses(failed, "planted")
	writeBack(t, database, whole)
	d = startDev(t, d.dir)
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
	d.verifies()
}

func writeBack(t *testing.T, database string, content []byte) string {
	t.Helper()
	for _, suffix := range []string{"-wal", "-shm"} {
		if err := os.Remove(database + suffix); err != nil && !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
	write(t, database, string(content), 0o600)
	return database
}
