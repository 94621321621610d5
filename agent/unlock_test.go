// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

func passwordFile(t testing.TB, content string, mode fs.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "password")
	check(t, os.WriteFile(path, []byte(content), 0o600))
	check(t, os.Chmod(path, mode))
	return path
}

func TestAPasswordIsTheFirstLineOfItsFile(t *testing.T) {
	for content, want := range map[string]string{
		"open sesame": "open sesame", "open sesame\n": "open sesame", "open sesame\r\nmore\n": "open sesame",
		" with blanks \n": " with blanks ", "a\rb\n": "a\rb",
	} {
		got, err := ReadPasswordFile(passwordFile(t, content, 0o600))
		if err != nil || string(got) != want {
			t.Errorf("%q: %q, %v", content, got, err)
		}
	}
	if got, err := ReadPasswordFile(passwordFile(t, "x", 0o400)); err != nil || string(got) != "x" {
		t.Errorf("%q, %v", got, err)
	}
}

func TestAPasswordFileThatOthersGetAtIsRefused(t *testing.T) {
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602, 0o777} {
		_, err := ReadPasswordFile(passwordFile(t, "open sesame", mode))
		wants(t, err, secret.ErrInvalid, "chmod 600")
		if strings.Contains(err.Error(), "sesame") {
			t.Error(err)
		}
	}
	path := passwordFile(t, "open sesame", 0o440)
	if os.Geteuid() != 0 {
		_, err := ReadPasswordFile(path)
		wants(t, err, secret.ErrInvalid, "0440")
		return
	}
	if _, err := ReadPasswordFile(path); err != nil {
		t.Errorf("systemd's credential: %v", err)
	}
	check(t, os.Chown(path, 0, 1))
	_, err := ReadPasswordFile(path)
	wants(t, err, secret.ErrInvalid, "0440")
	check(t, os.Chmod(path, 0o600))
	check(t, os.Chown(path, 4711, 0))
	_, err = ReadPasswordFile(path)
	wants(t, err, secret.ErrInvalid, "it belongs to user 4711")
}

func TestWhatIsNoPasswordIsRefused(t *testing.T) {
	for _, content := range []string{"", "\n", "\r\nopen sesame\n"} {
		_, err := ReadPasswordFile(passwordFile(t, content, 0o600))
		wants(t, err, secret.ErrInvalid, "its first line is empty")
	}
	if _, err := ReadPasswordFile(t.TempDir() + "/none"); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	// Without a writer, a FIFO would make others wait for ever.
	fifo := filepath.Join(t.TempDir(), "fifo")
	check(t, unix.Mkfifo(fifo, 0o600))
	_, err := ReadPasswordFile(fifo)
	wants(t, err, secret.ErrInvalid, "empty")
	var config Config
	config.Unlock.PasswordFile = passwordFile(t, strings.Repeat("x", 2000), 0o600)
	_, err = Opener(config, nil)
	wants(t, err, secret.ErrInvalid, "2000 bytes")
}

func TestTheFirstThatIsSetOpensTheStore(t *testing.T) {
	dir := t.TempDir()
	keyfile, password := filepath.Join(dir, "key"), passwordFile(t, "sesame", 0o600)
	check(t, InitKeyfile(t.Context(), StoreConfig{Driver: "sqlite", Path: filepath.Join(dir, "a", "keyhole.db")}, keyfile))
	asked := false
	ask := func() ([]byte, error) { asked = true; return []byte("typed"), nil }
	for _, c := range []struct {
		unlock UnlockConfig
		asked  bool
	}{
		{UnlockConfig{Keyfile: keyfile, PasswordFile: password}, false},
		{UnlockConfig{PasswordFile: password}, false},
		{UnlockConfig{}, true},
	} {
		asked = false
		if opener, err := Opener(Config{Unlock: c.unlock}, ask); err != nil || opener == nil || asked != c.asked {
			t.Errorf("%+v: %v, asked: %t", c.unlock, err, asked)
		}
	}
	_, err := Opener(Config{}, nil)
	wants(t, err, secret.ErrInvalid, "unlock.keyfile", "unlock.password_file")
	refused := errors.New("nobody is there")
	if _, err := Opener(Config{}, func() ([]byte, error) { return nil, refused }); !errors.Is(err, refused) {
		t.Error(err)
	}
}

func TestAStoreThatWasMadeWithAPasswordOpensWithIt(t *testing.T) {
	s := surround(t)
	s.config.Store.Path = filepath.Join(s.dir, "second", "keyhole.db")
	long := []byte(strings.Repeat("x", 2000))
	wants(t, InitPassword(t.Context(), s.config.Store, long), secret.ErrInvalid)
	if long[0] != 0 || long[1999] != 0 {
		t.Error("a password that is refused is left")
	}
	password := []byte("open sesame")
	check(t, InitPassword(t.Context(), s.config.Store, password))
	if string(password) != strings.Repeat("\x00", len(password)) {
		t.Errorf("the password is left: %q", password)
	}
	s.config.Unlock = UnlockConfig{PasswordFile: passwordFile(t, "open sesame\n", 0o600)}
	s.start(t)
	s.config.Unlock = UnlockConfig{PasswordFile: passwordFile(t, "open sesame!\n", 0o600)}
	_, err := VerifyAudit(t.Context(), s.config, s.options(t).Opener)
	wants(t, err, secret.ErrInUse)
}

func TestNothingIsInitializedTwice(t *testing.T) {
	dir := t.TempDir()
	store := StoreConfig{Driver: "sqlite", Path: filepath.Join(dir, "s", "keyhole.db")}
	first, second := filepath.Join(dir, "first.key"), filepath.Join(dir, "second.key")
	check(t, InitKeyfile(t.Context(), store, first))
	before, err := os.ReadFile(first)
	check(t, err)
	wants(t, InitKeyfile(t.Context(), store, first), secret.ErrExists, first)
	wants(t, InitKeyfile(t.Context(), store, second), secret.ErrExists, "has a root key already")
	wants(t, InitPassword(t.Context(), store, []byte("x")), secret.ErrExists, "has a root key already")
	wants(t, InitPassword(t.Context(), StoreConfig{Driver: "memory"}, []byte("x")), secret.ErrInvalid, "forgets its root key")
	wants(t, InitPassword(t.Context(), StoreConfig{Driver: "paper"}, []byte("x")), secret.ErrInvalid, `"paper" is no driver`)
	if after, err := os.ReadFile(first); err != nil || string(after) != string(before) {
		t.Errorf("the keyfile changed: %v", err)
	}
	if _, err := os.Lstat(second); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a keyfile that opens nothing is left: %v", err)
	}
}
