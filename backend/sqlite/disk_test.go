// SPDX-License-Identifier: Apache-2.0

package sqlite

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

func secretKey(id string) backend.Key { return backend.Key{Table: backend.Secrets, ID: id} }

func putting(id string, body []byte) backend.Batch {
	return backend.Batch{Ops: []backend.Op{{Record: backend.Record{Key: secretKey(id), Body: body}}}}
}

func mustCommit(t testing.TB, b *Backend, batches ...backend.Batch) []backend.Result {
	t.Helper()
	results, err := b.Commit(t.Context(), batches)
	if err != nil {
		t.Fatal(err)
	}
	return results
}

func exists(t testing.TB, b *Backend, id string) bool {
	t.Helper()
	records, _, err := b.Get(t.Context(), []backend.Key{secretKey(id)})
	if err != nil {
		t.Fatal(err)
	}
	return len(records) == 1
}

func TestAFullDiskWritesNothingAndLosesNothing(t *testing.T) {
	if !inChild(t, ownMounts()) {
		return
	}
	folder := mountSmall(t, "size=6m")
	other := filepath.Join(folder, "other")
	if err := os.WriteFile(other, make([]byte, 3<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	b := openStore(t, filepath.Join(folder, "store", "keyhole.db"))
	body := bytes.Repeat([]byte("x"), 10_000)
	written := 0
	var err error
	for ; err == nil && written < 1000; written++ {
		_, err = b.Commit(t.Context(), []backend.Batch{putting(fmt.Sprint(written), body)})
	}
	written--
	if !errors.Is(err, secret.ErrFull) {
		t.Fatalf("after %d commits: %v", written, err)
	}
	// A batch that partly fits: its first record alone would.
	several := putting("small", []byte("x"))
	several.Ops = append(several.Ops, putting("large", bytes.Repeat(body, 100)).Ops...)
	if _, err := b.Commit(t.Context(), []backend.Batch{several}); !errors.Is(err, secret.ErrFull) {
		t.Fatalf("a batch too large for the disk: %v", err)
	}
	if err := b.Health(t.Context()); !errors.Is(err, secret.ErrFull) {
		t.Errorf("Health on a full disk: %v", err)
	}
	for i := range written + 1 {
		if exists(t, b, fmt.Sprint(i)) != (i < written) {
			t.Fatalf("of %d acknowledged, record %d is wrong", written, i)
		}
	}
	if exists(t, b, "small") {
		t.Error("half of a batch was written")
	}
	if err := os.Remove(other); err != nil {
		t.Fatal(err)
	}
	if err := b.Health(t.Context()); err != nil {
		t.Errorf("Health with space again: %v", err)
	}
	mustCommit(t, b, putting("after", body))
	if err := b.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestAFullDiskMakesNoHalfStore(t *testing.T) {
	if !inChild(t, ownMounts()) {
		return
	}
	folder := mountSmall(t, "size=64k")
	_, err := Open(Config{Path: filepath.Join(folder, "store", "keyhole.db")})
	if !errors.Is(err, secret.ErrFull) {
		t.Fatalf("Open: %v", err)
	}
	entries, err := os.ReadDir(filepath.Join(folder, "store"))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "keyhole.db"+lockSuffix {
			t.Errorf("left over: %s", e.Name())
		}
	}
}

func TestAReadOnlyDiskIsRefusedAtOpen(t *testing.T) {
	if !inChild(t, ownMounts()) {
		return
	}
	folder := mountSmall(t, "size=4m")
	path := filepath.Join(folder, "store", "keyhole.db")
	b := openStore(t, path)
	mustCommit(t, b, putting("a", nil))
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("", folder, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	_, err := Open(Config{Path: path})
	if !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Open: %v", err)
	}
	_, err = Open(Config{Path: filepath.Join(folder, "other", "keyhole.db")})
	if !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("Open of a new store: %v", err)
	}
}

// A filesystem with open files cannot be made read-only on demand, so SQLite is
// told to see one.
func TestADiskThatBecomesReadOnlyIsNamedAtCommit(t *testing.T) {
	b := openStore(t, newPath(t))
	pretend := func(state string) {
		if err := b.write(t.Context(), func(c *conn) error { return c.once("PRAGMA query_only = " + state) }); err != nil {
			t.Fatal(err)
		}
	}
	pretend("ON")
	_, err := b.Commit(t.Context(), []backend.Batch{putting("a", nil)})
	if !errors.Is(err, secret.ErrUnavailable) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("Commit: %v", err)
	}
	if err := b.Health(t.Context()); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("Health: %v", err)
	}
	pretend("OFF")
	mustCommit(t, b, putting("a", nil))
	if err := b.Health(t.Context()); err != nil {
		t.Errorf("Health: %v", err)
	}
}

func TestDestroyedBytesLeaveTheFiles(t *testing.T) {
	path := newPath(t)
	b := openStore(t, path)
	const marker = "a data key that must go"
	large := bytes.Repeat([]byte(marker), 1000)
	for i := range 50 {
		mustCommit(t, b, putting(fmt.Sprint(i), []byte(fmt.Sprint(marker, i))), putting(fmt.Sprint("large", i), large))
	}
	if found := filesWith(t, path, marker); len(found) == 0 {
		t.Fatal("the marker is nowhere before it is destroyed")
	}
	for i := range 50 { // one is deleted, the other overwritten
		gone := putting(fmt.Sprint(i), nil)
		gone.Ops[0].Delete = true
		mustCommit(t, b, gone, putting(fmt.Sprint("large", i), []byte("x")))
	}
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Compact(t.Context()); err != nil {
		t.Fatal(err)
	}
	if found := filesWith(t, path, marker); len(found) > 0 {
		t.Errorf("destroyed bytes are still in %v", found)
	}
	after, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if after.Size() >= before.Size() && before.Size() > 1<<20 {
		t.Errorf("the database had %d bytes and has %d", before.Size(), after.Size())
	}
}

// filesWith returns the files of a store that contain text.
func filesWith(t *testing.T, path, text string) (found []string) {
	t.Helper()
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		content, err := os.ReadFile(filepath.Join(filepath.Dir(path), e.Name()))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(content, []byte(text)) {
			found = append(found, e.Name())
		}
	}
	return found
}

func TestTheWALStaysBounded(t *testing.T) {
	path := newPath(t)
	b := openStore(t, path)
	body := bytes.Repeat([]byte("x"), 1<<20)
	for i := range 64 {
		mustCommit(t, b, putting(fmt.Sprint(i%8), body))
	}
	info, err := os.Stat(path + "-wal")
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 32<<20 {
		t.Errorf("after 64 MiB of writes the WAL has %d bytes", info.Size())
	}
}
