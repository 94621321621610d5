// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// appRead lets the user app read what lies in the folder db.
const appRead = `policies:
  - name: app-read
    spiffe_id: spiffe://dev.keyhole.test/uid/1001
    path: db/**
    permissions: [read, list]
`

const sesame = "open sesame\x00\n"

// storeSesame stores the secret of the story, from standard input.
func (d *daemon) storeSesame() {
	d.t.Helper()
	d.as(root).with(sesame).keyhole("secret", "put", "db/creds", "username=app", "password=@-").
		says("db/creds is now at version 1\n")
}

// apply applies policies, through a file.
func (d *daemon) apply(policies string) {
	d.t.Helper()
	file := filepath.Join(folder(d.t), "policies.yaml")
	write(d.t, file, policies, 0o600)
	d.as(root).keyhole("policy", "apply", "-f", file).shows("applied ")
}

// A person's first hour, in the order in which it happens.
func TestAPersonStoresASecretAndLetsOneUserReadIt(t *testing.T) {
	begin(t)
	dir := filepath.Join(folder(t), "d")
	d := startDev(t, dir)
	environmentAppears(t, d)
	d.storeSesame()
	onlyTheAllowedUserReads(t, d)
	theCommandLineReads(t, d)
	policiesAreExplained(t, d)

	d.stop()
	nothingIsLeft(t, d)
	mustNotLeak(t, dir, sesame)
	d = startDev(t, dir)
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
	d.as(app).cat(d.file("db/creds", "password")).says(sesame)
	d.as(stranger).cat(d.file("db/creds", "password")).cannot("No such file or directory")

	secretsAreDestroyed(t, d)
	d.verifies()
	d.stop()
	nothingIsLeft(t, d)
	whoReadIsAudited(d)
}

func environmentAppears(t *testing.T, d *daemon) {
	t.Helper()
	for _, c := range []struct {
		path string
		mode fs.FileMode
	}{
		{".", 0o755}, {"store", 0o700}, {"store/keyhole.db", 0o600}, {"store/root.key", 0o600}, {"env", 0o644},
		{"agent.sock", 0o666}, {"admin.sock", 0o600},
	} {
		info, err := os.Stat(d.path(c.path))
		if err != nil {
			t.Error(err)
		} else if info.Mode().Perm() != c.mode {
			t.Errorf("%s has mode %04o instead of %04o", c.path, info.Mode().Perm(), c.mode)
		}
	}
	shell := session{t: t, environ: []string{"PATH=" + run.dir + ":" + os.Getenv("PATH")}}
	shell.sh(". "+d.path("env")+" && keyhole status --wait 30s").shows(
		"spiffe://dev.keyhole.test/keyhole/agent", fmt.Sprintf("pid %d", d.process.Process.Pid), d.path("secrets"))
	shell.sh(". " + d.path("env") + ` && echo "$KEYHOLE_SOCKET $KEYHOLE_ADMIN_SOCKET $SPIFFE_ENDPOINT_SOCKET"`).says(
		fmt.Sprintf("%s %s unix://%s\n", d.path("agent.sock"), d.path("admin.sock"), d.path("spiffe", "workload.sock")))
}

func onlyTheAllowedUserReads(t *testing.T, d *daemon) {
	t.Helper()
	file := d.file("db/creds", "password")
	d.as(root).cat(file).says(sesame)
	d.as(app).cat(file).cannot("No such file or directory")
	d.as(stranger).cat(file).cannot("No such file or directory")
	d.as(app).keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
	d.as(app).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")

	d.apply(appRead)
	d.as(app).cat(file).says(sesame)
	d.as(app).keyhole("secret", "get", "db/creds", "password").says(sesame)
	d.as(app).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password").says(sesame)
	d.as(app).keyhole("secret", "put", "db/creds", "password=mine").fails(denied, "permission denied")
	d.as(app).sh("echo mine > " + file).cannot("Read-only file system")

	d.as(stranger).cat(file).cannot("No such file or directory")
	d.as(root).keyhole("secret", "put", "token", "key=value").ok()
	d.as(stranger).cat(d.file("token", "key")).cannot("No such file or directory")
	d.as(stranger).keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
	d.as(stranger).without("SPIFFE_ENDPOINT_SOCKET").keyhole("secret", "get", "db/creds", "password").fails(denied, "permission denied")
	d.as(stranger).keyhole("secret", "list").says("")
}

func theCommandLineReads(t *testing.T, d *daemon) {
	t.Helper()
	d.as(root).keyhole("secret", "get", "db/creds", "username").says("app")
	d.as(root).keyhole("secret", "list").shows("db/creds")
	d.as(app).keyhole("secret", "list", "db").shows("db/creds")
	d.as(root).keyhole("secret", "get", "db/nothing").fails(notFound, "db/nothing", "not found")
	d.as(app).sh("ls "+d.path("secrets")+" "+d.path("secrets", "db", "creds")).shows("db", "password", "username")
	d.as(stranger).sh("ls " + d.path("secrets") + "/").says("")
}

func policiesAreExplained(t *testing.T, d *daemon) {
	t.Helper()
	explain := func(uid string) result {
		return d.as(root).keyhole("policy", "explain", "spiffe://dev.keyhole.test/uid/"+uid, "read", "db/creds")
	}
	explain("1001").shows("uid/1001 may read db/creds: app-read allows it")
	explain("1002").shows("uid/1002 may not read db/creds", "app-read")
	explain("0").shows("administrators")
}

func secretsAreDestroyed(t *testing.T, d *daemon) {
	t.Helper()
	r := d.as(root)
	r.keyhole("secret", "put", "db/kept", "k=v").ok()
	r.keyhole("secret", "delete", "db/creds", "--all-versions").says("db/creds has no live version any more\n")
	r.cat(d.file("db/creds", "password")).cannot("No such file or directory")
	d.as(app).cat(d.file("db/creds", "password")).cannot("No such file or directory")
	r.keyhole("secret", "get", "db/creds").fails(notFound, "db/creds")
	r.keyhole("secret", "list").shows("(empty)")

	r.keyhole("secret", "purge").fails(usage, "--force", "--dry-run")
	r.keyhole("secret", "purge", "--dry-run").says("Would purge: db/creds\nDry run: 1 secret would be purged\n")
	r.keyhole("secret", "purge", "--force", "--older-than", "1d").says("Purged 0 secrets\n")
	r.keyhole("secret", "purge", "--force").says("Purged 1 secret\n")
	r.keyhole("secret", "purge", "--force").says("Purged 0 secrets\n")
	r.keyhole("secret", "metadata", "db/creds").fails(notFound, "db/creds")
	r.keyhole("secret", "get", "db/kept", "k").says("v")
}

func whoReadIsAudited(d *daemon) {
	d.t.Helper()
	of := func(uid uint32, source, operation, decision string) record {
		return record{UID: uid, Source: source, Operation: operation, Decision: decision}
	}
	for _, source := range []string{"x509", "peer"} {
		want := of(app, source, "get", "allowed")
		want.Path, want.Policy, want.Deciding = "db/creds", "app-read", spiffe("uid/1001")[0]
		d.mustHaveAudited(want)
		d.mustHaveAudited(of(app, source, "get", "denied")) // before the policy
		want = of(stranger, source, "get", "denied")
		want.Path, want.IDs = "db/creds", spiffe("uid/1002")
		d.mustHaveAudited(want)
	}
	want := of(app, "broker", "open", "allowed")
	want.Path, want.Policy, want.Program = "db/creds", "app-read", "/usr/bin/cat"
	d.mustHaveAudited(want)
	want = of(stranger, "broker", "lookup", "denied")
	want.Path, want.IDs = "db", spiffe("uid/1002") // nothing that it may see lies there
	d.mustHaveAudited(want)
	want.Path = "token"
	d.mustHaveAudited(want)
	d.mustHaveAudited(record{Operation: "purge", Phase: "outcome", Path: "db/creds", Decision: "allowed", Policy: "administrators"})
	for _, operation := range []string{"get", "open", "put"} {
		d.mustNotHaveAudited(of(stranger, "", operation, "allowed"))
	}
}

// nothingIsLeft requires that an agent that ended in good order left nothing
// but what it stores.
func nothingIsLeft(t *testing.T, d *daemon) {
	t.Helper()
	mounts, err := mountsBelow(d.dir)
	if err != nil || len(mounts) > 0 {
		t.Errorf("mounts are left: %q, %v", mounts, err)
	}
	err = filepath.WalkDir(d.dir, func(path string, entry fs.DirEntry, err error) error {
		if err == nil && entry.Type()&(fs.ModeSocket|fs.ModeSymlink) != 0 {
			t.Errorf("%s is left: %s", path, entry.Type())
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
	if _, err := os.Lstat(d.path("env")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the file env is left: %v", err)
	}
	if err := syscall.Kill(-d.process.Process.Pid, 0); !errors.Is(err, syscall.ESRCH) {
		t.Errorf("a process of the agent is left: %v", err)
	}
}

// programs makes two programs that do what cat does: one that is known by where
// it is, and one that is known by what it is.
func programs(t *testing.T) (byPath, byContent string, sum [32]byte) {
	t.Helper()
	cat, err := os.ReadFile("/bin/cat")
	if err != nil {
		t.Fatal(err)
	}
	dir := folder(t)
	byPath, byContent = filepath.Join(dir, "reader"), filepath.Join(dir, "other-reader")
	write(t, byPath, string(cat), 0o755)
	content := string(cat) + "padding makes it another program\n"
	write(t, byContent, content, 0o755)
	return byPath, byContent, sha256.Sum256([]byte(content))
}

func TestARuleGivesAProgramAnotherID(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.storeSesame()
	d.apply(`policies:
  - {name: by-path, spiffe_id: spiffe://dev.keyhole.test/reader, path: db/creds, permissions: [read]}
  - {name: by-content, spiffe_id: spiffe://dev.keyhole.test/other-reader, path: db/creds, permissions: [read]}
`)
	byPath, byContent, sum := programs(t)
	file := d.file("db/creds", "password")
	d.as(stranger).run(byPath, file).cannot("No such file or directory")
	d.as(stranger).run(byContent, file).cannot("No such file or directory")

	write(t, d.path("workloads.yaml"), fmt.Sprintf(`workloads:
  - {spiffe_id: spiffe://dev.keyhole.test/reader, executable: %s}
  - {spiffe_id: spiffe://dev.keyhole.test/other-reader, sha256: %x}
`, byPath, sum), 0o644)
	d.hangup("workloads.yaml now has 2 rules")
	d.as(stranger).run(byPath, file).says(sesame)
	d.as(stranger).run(byContent, file).says(sesame)
	d.as(stranger).cat(file).cannot("No such file or directory")

	d.mustHaveAudited(record{UID: stranger, Operation: "open", Program: byPath, IDs: spiffe("reader"), Policy: "by-path", Decision: "allowed"})
	d.mustHaveAudited(record{UID: stranger, Operation: "open", Program: byContent, IDs: spiffe("other-reader"), Policy: "by-content", Decision: "allowed"})

	// The rules are read again at the start.
	d.stop()
	d = startDev(t, d.dir)
	d.as(stranger).run(byPath, file).says(sesame)
	d.stop()

	write(t, d.path("workloads.yaml"), "workloads:\n  - spiffe_id: spiffe://dev.keyhole.test/x\n    uid: 7\n    uid: 8\n", 0o644)
	launch(t, d.dir, run.keyhole, "dev", "--dir", d.dir).refuses(usage, "workloads.yaml", "line 4", "uid")
}
