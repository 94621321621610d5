// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"strings"
	"testing"
)

func TestHangupTakesOverTheAdministratorsAndNothingBroken(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	r := d.as(root)
	r.keyhole("secret", "put", "db/creds", "password=x").ok()
	written, err := os.ReadFile(s.config())
	if err != nil {
		t.Fatal(err)
	}
	good := string(written)
	demoted := strings.Replace(good, "spiffe://example.org/uid/0", "spiffe://example.org/uid/1001", 1)
	if demoted == good {
		t.Fatalf("the administrator is not in\n%s", good)
	}

	write(t, s.config(), demoted, 0o600)
	r.keyhole("secret", "get", "db/creds", "password").says("x") // not before the signal
	d.hangup("administrators is now")
	r.keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
	r.keyhole("secret", "purge", "--force").fails(denied, "permission denied")
	r.cat(d.file("db/creds", "password")).cannot("No such file or directory")
	d.as(app).keyhole("secret", "get", "db/creds", "password").says("x")
	d.as(app).cat(d.file("db/creds", "password")).says("x")

	for _, broken := range []string{
		good + "colour: red\n",
		strings.Replace(good, "spiffe://example.org/uid/0", "uid/0", 1),
		strings.Replace(good, "level: info", "level: loud", 1),
		"\x00",
	} {
		write(t, s.config(), broken, 0o600)
		d.hangup("nothing was changed")
		r.keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
		d.as(app).keyhole("secret", "get", "db/creds", "password").says("x")
	}
	if err := os.Remove(s.config()); err != nil {
		t.Fatal(err)
	}
	d.hangup("nothing was changed")
	d.as(app).keyhole("secret", "get", "db/creds", "password").says("x")

	// What cannot change while it runs is said to stay.
	write(t, s.config(), strings.Replace(good, s.path("store", "keyhole.db"), s.path("store", "other.db"), 1), 0o600)
	d.hangup("store.path stays")
	r.keyhole("secret", "get", "db/creds", "password").says("x")
	d.as(app).keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
	d.verifies()
	d.stop()
}

// An open file that its reader may no longer read stops being readable, when a
// policy goes as when an administrator does.
func TestHangupTakesFilesAwayThatAreOpen(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	reader := startOpener(t, root, d.file("db/creds", "password"))
	if got := reader.open(); got != `"x"` {
		t.Fatalf("an administrator: %s", got)
	}
	good, err := os.ReadFile(s.config())
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.config(), strings.Replace(string(good), "uid/0", "uid/1001", 1), 0o600)
	d.hangup("administrators is now")
	containsAll(t, "opening", reader.open(), "no such file")
}
