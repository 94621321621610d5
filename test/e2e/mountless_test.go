// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// Ways to run an agent that cannot mount.
var mountless = []struct {
	name    string
	command func(dev []string) []string
	words   []string
}{
	{
		"without the permission", func(dev []string) []string {
			return append([]string{"setpriv", "--bounding-set", "-sys_admin", "--inh-caps", "-sys_admin"}, dev...)
		},
		[]string{"CAP_SYS_ADMIN", "/dev/fuse"},
	},
	{
		"without the device", func(dev []string) []string {
			// A folder of devices of its own, that nobody else sees.
			const script = `mount -t tmpfs -o mode=0755 none /dev && mknod -m 666 /dev/null c 1 3 && exec "$@"`
			return append([]string{"unshare", "--mount", "sh", "-c", script, "sh"}, dev...)
		},
		[]string{"/dev/fuse is missing", "modprobe fuse"},
	},
}

func TestWithoutAMountTheSocketServes(t *testing.T) {
	begin(t)
	for _, way := range mountless {
		t.Run(way.name, func(t *testing.T) {
			t.Parallel()
			dir := filepath.Join(folder(t), "d")
			command := way.command([]string{run.keyhole, "dev", "--dir", dir})
			d := launch(t, dir, command[0], command[1:]...)
			d.environ = append(d.environ, "SPIFFE_ENDPOINT_SOCKET=unix://"+d.path("spiffe", "workload.sock"))
			d.await(`"msg":"ready"`)
			d.storeSesame()
			d.apply(appRead)
			d.as(root).keyhole("status").shows(append(way.words, "mount", "FAULT", "store     ok")...)
			for _, who := range []func(session) session{asItIs, withoutCredential} {
				who(d.as(app)).keyhole("secret", "get", "db/creds", "password").says(sesame)
				who(d.as(stranger)).keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
			}
			if _, err := os.Lstat(d.path("secrets")); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("there is a link to a mount that is not there: %v", err)
			}
			d.stop()
			nothingIsLeft(t, d)
		})
	}
}
