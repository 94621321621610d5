// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
)

// viewFiles are what the user app sees.
var viewFiles = []string{"db/creds/password", "db/creds/username", "db/replica/deep/down/key", "db/tls/tls.crt", "db/tls/tls.key"}

// checkView is an independent judge of the filesystem, run by its user.
func checkView() int {
	dir := os.Args[len(os.Args)-1]
	if err := fstest.TestFS(os.DirFS(dir), viewFiles...); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return failed
	}
	return done
}

func TestAViewIsAFilesystemAsTheStandardLibraryHasIt(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	r := d.as(root)
	r.with(strings.Repeat("0123456789abcdef", 8192)).keyhole("secret", "put", "db/tls", "tls.crt=@-", "tls.key=").ok()
	r.keyhole("secret", "put", "db/creds", "username=app", "password=open sesame").ok()
	r.keyhole("secret", "put", "db/replica/deep/down", "key=value").ok()
	r.keyhole("secret", "put", "web/session", "key=not for app").ok()
	r.keyhole("secret", "put", "db/gone", "key=value").ok()
	r.keyhole("secret", "delete", "db/gone").ok()
	d.apply(appRead)
	for _, dir := range []string{d.path("secrets") + "/", d.path("fs", "self") + "/"} {
		if out, err := playPart("view", app, dir).Output(); err != nil {
			t.Errorf("%s: %v\n%s", dir, err, out)
		}
	}
	// The judge can say no: to another user these files are not there.
	judge := playPart("view", stranger, d.path("secrets")+"/")
	judge.Stderr = nil
	if out, err := judge.CombinedOutput(); err == nil || !strings.Contains(string(out), "db/creds/password") {
		t.Errorf("another user sees the files too: %v\n%s", err, out)
	}
}
