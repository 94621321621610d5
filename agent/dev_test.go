// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/secret"
)

// running is a development agent that runs.
type running struct {
	*Development
	env  string
	stop func() error
}

// develop runs a development agent until the test ends, or stop is called.
func develop(t *testing.T, dir string) *running {
	t.Helper()
	d, err := NewDevelopment(t.Context(), dir, Options{Version: "test"})
	check(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	ready, ended := make(chan string, 1), make(chan error, 1)
	go func() { ended <- d.Run(ctx, func(env string) { ready <- env }) }()
	r := &running{Development: d}
	stopped := false
	r.stop = func() error {
		cancel()
		if stopped {
			return nil
		}
		stopped = true
		return <-ended
	}
	t.Cleanup(func() { check(t, r.stop()) })
	select {
	case r.env = <-ready:
	case err := <-ended:
		t.Fatalf("it ended before it was ready: %v", err)
	}
	return r
}

func requireGone(t testing.TB, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is left: %v", path, err)
		}
	}
}

func TestAShellGetsTheEnvironmentWhateverTheFolderIsCalled(t *testing.T) {
	dir := filepath.Join(shortDir(t), "it's $(a) \"b\"\n\\")
	d := develop(t, dir)
	script := `. "$1" && printf '%s|%s|%s' "$KEYHOLE_SOCKET" "$KEYHOLE_ADMIN_SOCKET" "$SPIFFE_ENDPOINT_SOCKET"`
	out, err := exec.Command("sh", "-c", script, "sh", d.env).CombinedOutput()
	check(t, err)
	want := dir + "/agent.sock|" + dir + "/admin.sock|" + d.domain.WorkloadAddress()
	if string(out) != want {
		t.Errorf("%q instead of %q", out, want)
	}
}

func TestTheFoldersHaveTheirModesWhateverTheUmask(t *testing.T) {
	defer syscall.Umask(syscall.Umask(0o077))
	dir := filepath.Join(shortDir(t), "around", "d")
	d := develop(t, dir)
	for path, want := range map[string]fs.FileMode{
		filepath.Dir(dir): 0o755, dir: 0o755, filepath.Join(dir, "store"): 0o700, filepath.Join(dir, "spiffe"): 0o755, d.env: 0o644,
	} {
		info, err := os.Lstat(path)
		check(t, err)
		if info.Mode().Perm() != want {
			t.Errorf("%s has mode %04o", path, info.Mode().Perm())
		}
	}
}

func TestADevelopmentAgentLeavesItsDataAndNothingElse(t *testing.T) {
	dir := filepath.Join(shortDir(t), "d")
	d := develop(t, dir)
	user := as(spiffeid.RequireFromString(d.agent.running().Administrators[0]))
	_, err := d.agent.vault.Put(t.Context(), user, dbCreds, values(t, "k", "survives"))
	check(t, err)
	check(t, d.stop())
	requireGone(t, d.env, filepath.Join(dir, "agent.sock"), filepath.Join(dir, "admin.sock"), filepath.Join(dir, "secrets"), filepath.Join(dir, "fs"))
	d = develop(t, dir)
	got, err := d.agent.vault.Get(t.Context(), user, dbCreds, 0)
	check(t, err)
	key, err := secret.ParseKey("k")
	check(t, err)
	if value, _ := got.Values.Get(key); string(value) != "survives" {
		t.Errorf("%q", value)
	}
}

func TestAnEnvironmentOfAKilledAgentIsNotTakenForThatOfTheNext(t *testing.T) {
	dir := filepath.Join(shortDir(t), "d")
	check(t, os.Mkdir(dir, 0o755))
	victim := filepath.Join(filepath.Dir(dir), "victim")
	check(t, os.WriteFile(victim, []byte("kept"), 0o600))
	check(t, os.Symlink(victim, filepath.Join(dir, "env")))
	d, err := NewDevelopment(t.Context(), dir, Options{})
	check(t, err)
	requireGone(t, filepath.Join(dir, "env"))
	// Somebody puts another one there before it is ready: it is replaced, not
	// followed.
	check(t, os.Symlink(victim, filepath.Join(dir, "env")))
	ctx, cancel := context.WithCancel(t.Context())
	check(t, d.Run(ctx, func(env string) {
		defer cancel()
		if info, err := os.Lstat(env); err != nil || !info.Mode().IsRegular() {
			t.Errorf("%v, %v", info, err)
		}
	}))
	if content, err := os.ReadFile(victim); err != nil || string(content) != "kept" {
		t.Errorf("%q, %v", content, err)
	}
	entries, err := os.ReadDir(dir)
	check(t, err)
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".env") || entry.Name() == "env" {
			t.Errorf("%s is left", entry.Name())
		}
	}
}

func TestASecondDevelopmentAgentDoesNotDisturbTheFirst(t *testing.T) {
	dir := filepath.Join(shortDir(t), "d")
	d := develop(t, dir)
	_, err := NewDevelopment(t.Context(), dir, Options{})
	wants(t, err, secret.ErrInUse, "process ")
	if _, err := os.Lstat(d.env); err != nil {
		t.Error(err)
	}
}

func TestADevelopmentAgentThatIsStoppedWhileItStartsLeavesNothingOpen(t *testing.T) {
	dir := filepath.Join(shortDir(t), "d")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := NewDevelopment(ctx, dir, Options{})
	wants(t, err, context.Canceled)
	d, err := NewDevelopment(t.Context(), dir, Options{})
	check(t, err)
	check(t, d.Run(ctx, func(string) {}))
	requireGone(t, filepath.Join(dir, "env"))
}

func TestAFolderThatOthersMayChangeIsRefused(t *testing.T) {
	for name, c := range map[string]struct {
		prepare func(dir string) error
		words   string
	}{
		"writable": {func(dir string) error { return os.Chmod(dir, 0o777) }, "run: chmod 0755"},
		"group":    {func(dir string) error { return os.Chmod(dir, 0o775) }, "with mode 0775 others"},
		"store open": {func(dir string) error {
			return errors.Join(os.Mkdir(dir+"/store", 0o755), os.Chmod(dir+"/store", 0o755))
		}, "run: chmod 0700"},
		"store elsewhere": {func(dir string) error { return os.Symlink("/tmp", dir+"/store") }, "something else is there"},
		"spiffe a file":   {func(dir string) error { return os.WriteFile(dir+"/spiffe", nil, 0o600) }, "something else is there"},
		"another user's": {func(dir string) error {
			if os.Geteuid() != 0 {
				return errSkipped
			}
			return os.Chown(dir, 4711, 4711)
		}, "it belongs to another user"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := filepath.Join(shortDir(t), "d")
			check(t, os.Mkdir(dir, 0o755))
			if err := c.prepare(dir); errors.Is(err, errSkipped) {
				t.Skip("needs root")
			} else {
				check(t, err)
			}
			_, err := NewDevelopment(t.Context(), dir, Options{})
			wants(t, err, secret.ErrInvalid, c.words)
		})
	}
}

var errSkipped = errors.New("skipped")

func TestAFolderWithALongPathIsRefused(t *testing.T) {
	dir := shortDir(t)
	fitting := dir + "/" + strings.Repeat("d", maxDevelopmentPath-len(dir)-1)
	develop(t, fitting)
	_, err := NewDevelopment(t.Context(), fitting+"d", Options{})
	wants(t, err, secret.ErrInvalid, "choose a shorter one")
	requireGone(t, fitting+"d")
}

func TestALostStoreIsNotReplacedByAnEmptyOne(t *testing.T) {
	dir := filepath.Join(shortDir(t), "d")
	check(t, develop(t, dir).stop())
	check(t, os.Remove(filepath.Join(dir, "store", "keyhole.db")))
	_, err := NewDevelopment(t.Context(), dir, Options{})
	wants(t, err, secret.ErrNotFound, "to begin anew here, remove "+dir+"/store")
}

func TestRulesAreReloadedTogetherWithTheRestOrNotAtAll(t *testing.T) {
	const other = "workloads: []"
	one := fmt.Sprintf("workloads: [{spiffe_id: 'spiffe://dev.keyhole.test/one', uid: %d}]", os.Geteuid())
	child := exec.Command("cat")
	input, err := child.StdinPipe()
	check(t, err)
	check(t, child.Start())
	defer func() { check(t, errors.Join(input.Close(), child.Wait())) }()
	dir := filepath.Join(shortDir(t), "d")
	d := develop(t, dir)
	file := filepath.Join(dir, "workloads.yaml")
	ctx := t.Context()
	reload := func(rules string) ([]string, error) {
		check(t, os.WriteFile(file, []byte(rules), 0o600))
		return d.Reload(ctx)
	}
	if changes, err := reload(one); err != nil || len(changes) != 1 || changes[0] != "workloads.yaml now has 1 rules, had 0" {
		t.Errorf("%q, %v", changes, err)
	}
	if changes, err := reload(one); err != nil || len(changes) != 0 {
		t.Errorf("%q, %v", changes, err)
	}
	for _, wrong := range []string{"workloads: [{uid: 1}]", "workloads: [{spiffe_id: 'spiffe://example.org/one', uid: 4711}]", "x"} {
		_, err := reload(wrong)
		wants(t, err, secret.ErrInvalid)
	}
	// The rules are right, but the policies are not read to their end.
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	ctx = ended
	_, err = reload(other)
	wants(t, err, context.Canceled)
	ctx = t.Context()
	if grant, err := d.agent.gate.Attest(ctx, child.Process.Pid); err != nil || len(grant.IDs) != 1 || grant.IDs[0].Path() != "/one" {
		t.Errorf("%+v, %v", grant, err)
	}
	if changes, err := reload(other); err != nil || changes[0] != "workloads.yaml now has 0 rules, had 1" {
		t.Errorf("%q, %v", changes, err)
	}
}

func TestWrongRulesKeepADevelopmentAgentFromStarting(t *testing.T) {
	dir := filepath.Join(shortDir(t), "d")
	check(t, os.Mkdir(dir, 0o755))
	check(t, os.WriteFile(filepath.Join(dir, "workloads.yaml"), []byte("workloads: [{uid: 1}]"), 0o600))
	_, err := NewDevelopment(t.Context(), dir, Options{Logger: slog.New(slog.DiscardHandler)})
	wants(t, err, secret.ErrInvalid, "workloads.yaml")
}
