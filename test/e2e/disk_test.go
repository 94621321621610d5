// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ballast fills the disk that dir is on, up to the last page.
func ballast(t *testing.T, dir string) (remove func()) {
	t.Helper()
	path := filepath.Join(dir, "ballast")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	for err == nil {
		_, err = file.Write(make([]byte, 1<<20))
	}
	for page := make([]byte, 4096); errors.Is(err, syscall.ENOSPC); {
		if _, err = file.Write(page); err != nil {
			break
		}
		err = syscall.ENOSPC
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal("filling the disk: ", err)
	}
	if err := file.Close(); err != nil {
		t.Fatal(err)
	}
	return func() {
		t.Helper()
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAFullDiskLosesNothing(t *testing.T) {
	begin(t)
	dir := filepath.Join(folder(t), "d")
	mountTmpfs(t, filepath.Join(dir, "store"), "size=100m,mode=0700")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := startDev(t, dir)
	d.storeSesame()
	lighten := ballast(t, d.path("store"))
	r := d.as(root)
	value := strings.Repeat("x", 100_000)
	kept := putUntilFull(d, value)
	r.keyhole("status").shows("store", "FAULT", "space")
	// What is there is served, over the socket and as files.
	r.keyhole("secret", "get", "db/creds", "password").says(sesame)
	r.cat(d.file("db/creds", "password")).says(sesame)
	everyPutIsThere(d, kept, value)

	lighten()
	r.with(value).keyhole("secret", "put", fmt.Sprintf("full/s%d", kept), "key=@-").ok()
	r.keyhole("status").shows("store     ok")
	everyPutIsThere(d, kept+1, value)
	d.verifies()

	// Full again, and killed: what was acknowledged is there.
	lighten = ballast(t, d.path("store"))
	r.with(value).keyhole("secret", "put", "full/never", "key=@-").fails(unavailable, "full/never", "space")
	d.kill()
	lighten()
	d = startDev(t, dir)
	everyPutIsThere(d, kept+1, value)
	d.as(root).keyhole("secret", "get", "full/never").fails(notFound, "full/never")
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
	d.verifies()
	d.stop()
}

// putUntilFull returns how many secrets were acknowledged.
func putUntilFull(d *daemon, value string) (kept int) {
	d.t.Helper()
	for ; kept < 1000; kept++ {
		path := fmt.Sprintf("full/s%d", kept)
		got := d.as(root).with(value).keyhole("secret", "put", path, "key=@-")
		if got.code != done {
			got.fails(unavailable, path, "space")
			return kept
		}
	}
	d.t.Fatal("the disk does not fill up")
	return 0
}

func everyPutIsThere(d *daemon, count int, value string) {
	d.t.Helper()
	for i := range count {
		if got := d.as(root).keyhole("secret", "get", fmt.Sprintf("full/s%d", i), "key").ok(); got != value {
			d.t.Errorf("full/s%d came back as %d bytes", i, len(got))
		}
	}
}

func TestAFullDiskAtTheStartIsSaid(t *testing.T) {
	begin(t)
	dir := filepath.Join(folder(t), "d")
	mountTmpfs(t, filepath.Join(dir, "store"), "size=16k,mode=0700")
	launch(t, dir, run.keyhole, "dev", "--dir", dir).refuses(unavailable, "space")
	if err := unix.Mount("", filepath.Join(dir, "store"), "", unix.MS_REMOUNT, "size=100m"); err != nil {
		t.Fatal(err)
	}
	d := startDev(t, dir)
	d.storeSesame()
}

func TestAReadOnlyStoreIsSaidAndLeftAsItIs(t *testing.T) {
	begin(t)
	dir := filepath.Join(folder(t), "d")
	store := filepath.Join(dir, "store")
	mountTmpfs(t, store, "size=100m,mode=0700")
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	d := startDev(t, dir)
	d.storeSesame()
	d.stop()
	if err := unix.Mount("", store, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	launch(t, dir, run.keyhole, "dev", "--dir", dir).refuses(unavailable, store, "read-only")
	if err := unix.Mount("", store, "", unix.MS_REMOUNT, ""); err != nil {
		t.Fatal(err)
	}
	d = startDev(t, dir)
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
	d.verifies()
}
