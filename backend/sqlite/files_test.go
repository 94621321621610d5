// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestOnlyTheOwnerCanReadAStore(t *testing.T) {
	old := unix.Umask(0) // as a careless service manager has it
	t.Cleanup(func() { unix.Umask(old) })
	path := newPath(t)
	b := openStore(t, path)
	mustCommit(t, b, putting("a", nil))
	for name, want := range map[string]fs.FileMode{
		filepath.Dir(path): 0o700, path: 0o600, path + "-wal": 0o600, path + "-shm": 0o600, path + lockSuffix: 0o600,
	} {
		info, err := os.Stat(name)
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != want {
			t.Errorf("%s has mode %04o, want %04o", filepath.Base(name), got, want)
		}
	}
}

func TestWhatOthersCanWriteIsRefused(t *testing.T) {
	for name, spoil := range map[string]func(path string) error{
		"folder":          func(path string) error { return os.Chmod(filepath.Dir(path), 0o720) },
		"folder for all":  func(path string) error { return os.Chmod(filepath.Dir(path), 0o777) },
		"file":            func(path string) error { return os.Chmod(path, 0o602) },
		"lock file":       func(path string) error { return os.Chmod(path+lockSuffix, 0o666) },
		"owner of a file": func(path string) error { return os.Chown(path, 4242, -1) },
	} {
		t.Run(name, func(t *testing.T) {
			if os.Geteuid() != 0 && strings.HasPrefix(name, "owner") {
				t.Skip("only root gives files away")
			}
			path := newPath(t)
			closeNow(t, openStore(t, path))
			if err := spoil(path); err != nil {
				t.Fatal(err)
			}
			_, err := Open(Config{Path: path})
			if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), "ch") {
				t.Errorf("Open: %v", err)
			}
		})
	}
}

func closeNow(t *testing.T, b *Backend) {
	t.Helper()
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

func TestAMissingStoreIsMadeOnlyWhenAllowed(t *testing.T) {
	path := newPath(t)
	if _, err := Open(Config{Path: path, MustExist: true}); !errors.Is(err, secret.ErrNotFound) {
		t.Errorf("Open: %v", err)
	}
	closeNow(t, openStore(t, path))
	b, err := Open(Config{Path: path, MustExist: true})
	if err != nil {
		t.Fatal(err)
	}
	closeNow(t, b)
}

func TestBadConfigurationIsRefused(t *testing.T) {
	for _, c := range []Config{{}, {Path: newPath(t), Readers: -1}, {Path: newPath(t), Readers: 65}} {
		if _, err := Open(c); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("Open(%+v): %v", c, err)
		}
	}
}

func TestAStoreHalfMadeByAKilledProcessIsMadeAgain(t *testing.T) {
	path := newPath(t)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	for _, suffix := range []string{newSuffix, newSuffix + "-journal", newSuffix + "-wal"} {
		if err := os.WriteFile(path+suffix, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	b := openStore(t, path)
	mustCommit(t, b, putting("a", nil))
	if found := filesWith(t, path, "half"); len(found) > 0 {
		t.Errorf("left over: %v", found)
	}
}

func TestAPathWithAwkwardCharactersWorks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "50% of? a #store&mode=memory", "ä :b.db")
	b := openStore(t, path)
	mustCommit(t, b, putting("a", nil))
	if _, err := os.Stat(path + "-wal"); err != nil {
		t.Error(err)
	}
}

// A moved store: what happens to it, how it is undone, and what the error says.
func movings() map[string]struct {
	move, undo func(path string) error
	says       string
} {
	rename := func(suffix string) (move, undo func(path string) error) {
		return func(path string) error { return os.Rename(path+suffix, path+suffix+".away") },
			func(path string) error { return os.Rename(path+suffix+".away", path+suffix) }
	}
	type moving = struct {
		move, undo func(path string) error
		says       string
	}
	cases := map[string]moving{
		"folder renamed": {
			func(path string) error { return os.Rename(filepath.Dir(path), filepath.Dir(path)+".away") },
			func(path string) error { return os.Rename(filepath.Dir(path)+".away", filepath.Dir(path)) },
			"moved or deleted",
		},
		"file deleted": {os.Remove, nil, "moved or deleted"},
		"file replaced": {func(path string) error {
			content, err := os.ReadFile(path)
			return errors.Join(err, os.WriteFile(path+".copy", content, 0o600), os.Rename(path+".copy", path))
		}, nil, "replaced"},
	}
	for _, suffix := range []string{"", "-wal", "-shm", lockSuffix} {
		move, undo := rename(suffix)
		cases["keyhole.db"+suffix+" renamed"] = moving{move, undo, "moved or deleted"}
	}
	return cases
}

func TestAMovedStoreTakesNoCommit(t *testing.T) {
	for name, c := range movings() {
		t.Run(name, func(t *testing.T) {
			path := newPath(t)
			b := openStore(t, path)
			mustCommit(t, b, putting("before", nil))
			if err := c.move(path); err != nil {
				t.Fatal(err)
			}
			_, commitErr := b.Commit(t.Context(), []backend.Batch{putting("lost", nil)})
			for call, err := range map[string]error{"Commit": commitErr, "Health": b.Health(t.Context())} {
				if !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), c.says) {
					t.Errorf("%s: %v", call, err)
				}
			}
			if c.undo == nil {
				return
			}
			if err := c.undo(path); err != nil {
				t.Fatal(err)
			}
			if err := b.Health(t.Context()); err != nil {
				t.Errorf("Health when it is back: %v", err)
			}
			mustCommit(t, b, putting("after", nil))
			if exists(t, b, "lost") {
				t.Error("a refused commit was applied")
			}
		})
	}
}

// A move in the middle of a commit is only seen after it.
func TestAMoveDuringACommitIsNoticed(t *testing.T) {
	path := newPath(t)
	b := openStore(t, path)
	err := b.write(t.Context(), func(*conn) error { return os.Rename(path, path+".away") })
	if !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("%v", err)
	}
}
