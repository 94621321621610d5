// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestANewKeyfileIsPrivateAndReadsBackAsTheSameKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	written, err := seal.NewKeyfile(path)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Mode() != 0o600 {
		t.Errorf("the keyfile has mode %v", info.Mode())
	}
	read, err := seal.ReadKeyfile(path)
	if err != nil {
		t.Fatal(err)
	}
	k, lock, err := seal.Create(storeID, keyfileSlot(written))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	unlock(t, storeID, lock, read)
}

func TestANewKeyfileOverwritesNothing(t *testing.T) {
	folder := t.TempDir()
	taken := filepath.Join(folder, "taken")
	if err := os.WriteFile(taken, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	dangling := filepath.Join(folder, "dangling")
	if err := os.Symlink(filepath.Join(folder, "elsewhere"), dangling); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{taken, dangling} {
		if _, err := seal.NewKeyfile(path); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: got error %v", path, err)
		}
	}
	if content, err := os.ReadFile(taken); err != nil || string(content) != "precious" {
		t.Errorf("the file now holds %q, %v", content, err)
	}
	if _, err := seal.NewKeyfile(filepath.Join(folder, "absent", "key")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("in an absent folder: got error %v", err)
	}
}

func TestAnExposedKeyfileIsRefusedWithWhatToDo(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := seal.NewKeyfile(path); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []fs.FileMode{0o604, 0o602, 0o640, 0o620, 0o644, 0o666, 0o444, 0o441} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		_, err := seal.ReadKeyfile(path)
		if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "chmod 600 "+path) {
			t.Errorf("mode %v: got error %v", mode, err)
		}
	}
	for _, mode := range []fs.FileMode{0o600, 0o400} {
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		if _, err := seal.ReadKeyfile(path); err != nil {
			t.Errorf("mode %v: %v", mode, err)
		}
	}
}

func TestAKeyfilesOwnerMustBeRootOrOurselves(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can give files away")
	}
	path := filepath.Join(t.TempDir(), "key")
	if _, err := seal.NewKeyfile(path); err != nil {
		t.Fatal(err)
	}
	read := func(uid, gid int, mode fs.FileMode) error {
		t.Helper()
		if err := errors.Join(os.Chown(path, uid, gid), os.Chmod(path, mode)); err != nil {
			t.Fatal(err)
		}
		_, err := seal.ReadKeyfile(path)
		return err
	}
	if err := read(65534, 0, 0o600); !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "chown 0 "+path) {
		t.Errorf("another's: got error %v", err)
	}
	if err := read(0, 0, 0o440); err != nil {
		t.Errorf("as systemd delivers a credential: %v", err)
	}
	if err := read(0, 65534, 0o440); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("for another group: got error %v", err)
	}
}

func TestWhatIsNoKeyfileIsRefusedWithoutShowingIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	if _, err := seal.NewKeyfile(path); err != nil {
		t.Fatal(err)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	line := strings.TrimSuffix(string(content), "\n")
	_, encoded, _ := strings.Cut(line, ":")
	swap := "A"
	if line[40] == 'A' {
		swap = "B"
	}
	for name, text := range map[string]string{
		"empty":            "",
		"prefix only":      "keyhole-key-1:",
		"another prefix":   "keyhole-key-2:" + encoded,
		"no prefix":        encoded,
		"cut":              line[:len(line)-1],
		"long":             line + "A",
		"two lines":        line + "\n\n",
		"carriage return":  line + "\r\n",
		"leading space":    " " + line,
		"a changed letter": line[:40] + swap + line[41:],
		"no base64":        line[:40] + "!" + line[41:],
		"a line break":     line[:40] + "\n" + line[41:],
		"huge":             strings.Repeat(line, 1000),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		_, err := seal.ReadKeyfile(path)
		if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got error %v", name, err)
		}
		if err != nil && strings.Contains(err.Error(), encoded[:8]) {
			t.Errorf("%s: the error shows the key: %v", name, err)
		}
	}
	if err := os.WriteFile(path, []byte(line), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.ReadKeyfile(path); err != nil {
		t.Errorf("without a line feed: %v", err)
	}
}

func TestWhatIsNoRegularFileIsRefusedAtOnce(t *testing.T) {
	folder := t.TempDir()
	fifo := filepath.Join(folder, "fifo")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{fifo, folder} {
		_, err := seal.ReadKeyfile(path)
		if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "no regular file") {
			t.Errorf("%s: got error %v", path, err)
		}
	}
	_, err := seal.ReadKeyfile(filepath.Join(folder, "absent"))
	wantError(t, err, fs.ErrNotExist)
}
