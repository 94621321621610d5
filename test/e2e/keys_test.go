// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"testing"
)

func TestOnlyTheRightKeyfileOpensTheStore(t *testing.T) {
	begin(t)
	s, other := newSite(t), newSite(t)
	s.init().shows(s.config(), s.path("root.key"), "keyhole agent --config")
	other.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.stop()

	for name, c := range map[string]struct {
		keyfile func(path string)
		words   []string
	}{
		"of another store":   {func(path string) { copyFile(t, other.path("root.key"), path, 0o600) }, []string{"unlocking the store", "keyfile"}},
		"readable by others": {func(path string) { copyFile(t, s.path("root.key"), path, 0o644) }, []string{"0644", "chmod 600", s.dir}},
		"cut":                {func(path string) { write(t, path, "x", 0o600) }, []string{"keyfile cut"}},
		"missing":            {func(string) {}, []string{"keyfile missing", "no such file"}},
	} {
		path := s.path("keyfile " + name)
		c.keyfile(path)
		agent := s.launch("--unlock.keyfile", path)
		if agent.wait() == done {
			t.Errorf("a keyfile that is %s opened the store", name)
		}
		agent.refuses(agent.process.ProcessState.ExitCode(), c.words...)
	}
	d = s.start()
	d.as(root).keyhole("secret", "get", "db/creds", "password").says("x")
	d.verifies()
}

func TestOnlyTheRightPasswordOpensTheStore(t *testing.T) {
	begin(t)
	s := newSite(t)
	password := s.path("password")
	write(t, password, "correct horse battery staple\n", 0o600)
	s.init("--unlock", "password", "--password-file", password).ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	d.stop()

	wrong := s.path("wrong")
	write(t, wrong, "correct horse battery stable\n", 0o600)
	s.launch("--unlock.password_file", wrong).refuses(denied, "unlocking the store", "password")
	write(t, wrong, "correct horse battery staple\n", 0o640)
	s.launch("--unlock.password_file", wrong).refuses(usage, wrong, "0640", "chmod 600")
	write(t, wrong, "\n", 0o600)
	s.launch("--unlock.password_file", wrong).refuses(usage, "password")
	if err := os.Remove(wrong); err != nil {
		t.Fatal(err)
	}
	s.launch("--unlock.password_file", wrong).refuses(failed, wrong, "no such file")
	s.launch("--unlock.password_file", "").refuses(usage, "unlock.keyfile", "unlock.password_file")
	// What opens other stores does not open this one.
	stranger := newSite(t)
	stranger.init().ok()
	s.launch("--unlock.keyfile", stranger.path("root.key")).refuses(denied, "unlocking the store")

	d = s.start()
	d.as(root).keyhole("secret", "get", "db/creds", "password").says("x")
	d.verifies()
	d.stop()
	mustNotLeak(t, s.path("store"), "correct horse")
}

func copyFile(t *testing.T, from, to string, mode os.FileMode) {
	t.Helper()
	content, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	write(t, to, string(content), mode)
}
