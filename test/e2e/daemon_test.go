// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
)

// daemon is an agent in a process of its own.
type daemon struct {
	t       *testing.T
	dir     string // where it keeps everything, laid out as keyhole dev does
	environ []string
	process *exec.Cmd
	log     *transcript
	exited  chan struct{} // closed when it is reaped
}

// startDev starts keyhole dev on a folder, and waits until it is ready.
func startDev(t *testing.T, dir string) *daemon {
	t.Helper()
	d := launch(t, dir, run.keyhole, "dev", "--dir", dir)
	d.environ = append(d.environ, "SPIFFE_ENDPOINT_SOCKET=unix://"+filepath.Join(dir, "spiffe", "workload.sock"))
	d.await(`"msg":"ready"`)
	return d
}

// launch starts a program that becomes an agent, in a process group of its own.
func launch(t *testing.T, dir, program string, args ...string) *daemon {
	t.Helper()
	d := &daemon{t: t, dir: dir, log: newTranscript(), exited: make(chan struct{})}
	d.environ = []string{
		"PATH=" + run.dir + ":" + os.Getenv("PATH"),
		"KEYHOLE_SOCKET=" + filepath.Join(dir, "agent.sock"),
		"KEYHOLE_ADMIN_SOCKET=" + filepath.Join(dir, "admin.sock"),
	}
	d.process = exec.Command(program, args...)
	d.process.Env = []string{"PATH=" + os.Getenv("PATH"), raceOptions}
	d.process.Dir = "/"
	d.process.Stderr = d.log
	d.process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	if err := d.process.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(d.exited)
		_ = d.process.Wait() // ProcessState tells
		d.log.end()
	}()
	t.Cleanup(func() {
		d.kill()
		if strings.Contains(d.log.text(), "DATA RACE") {
			t.Errorf("%s has a data race:\n%s", d.process, d.log.text())
		}
		if t.Failed() {
			lines := strings.SplitAfter(d.log.text(), "\n")
			t.Logf("the end of the log of %s:\n%s", d.process, strings.Join(lines[max(0, len(lines)-25):], ""))
		}
	})
	return d
}

// as returns a shell of a user that has sourced the environment.
func (d *daemon) as(uid uint32) session {
	return session{t: d.t, uid: uid, environ: d.environ}
}

// client connects to the agent as this process.
func (d *daemon) client() *client.Client {
	d.t.Helper()
	config, err := client.FromEnvironment(func(name string) string {
		for _, entry := range d.environ {
			if value, ok := strings.CutPrefix(entry, name+"="); ok {
				return value
			}
		}
		return ""
	})
	if err != nil {
		d.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(d.t.Context(), patience)
	defer cancel()
	c, err := client.New(ctx, config)
	if err != nil {
		d.t.Fatal(err)
	}
	d.t.Cleanup(func() { _ = c.Close() }) // the agent may be gone
	return c
}

// path names a file in the agent's folder.
func (d *daemon) path(names ...string) string {
	return filepath.Join(append([]string{d.dir}, names...)...)
}

// file names a value in the mount.
func (d *daemon) file(path, key string) string { return d.path("secrets", path, key) }

// await waits until the agent's log has the words.
func (d *daemon) await(words string) {
	d.t.Helper()
	if !d.log.await(d.t, 0, words) {
		d.t.Fatalf("the agent ended, or %s passed, before it said %s:\n%s", patience, words, d.log.text())
	}
}

// hangup sends SIGHUP, and waits until the log has the words after that.
func (d *daemon) hangup(words string) {
	d.t.Helper()
	before := len(d.log.text())
	d.signal(syscall.SIGHUP)
	if !d.log.await(d.t, before, words) {
		d.t.Fatalf("after SIGHUP the agent did not say %s:\n%s", words, d.log.text())
	}
}

func (d *daemon) signal(s syscall.Signal) {
	d.t.Helper()
	if err := d.process.Process.Signal(s); err != nil {
		d.t.Fatal(err)
	}
}

// stop ends the agent in good order.
func (d *daemon) stop() {
	d.t.Helper()
	d.signal(syscall.SIGTERM)
	if code := d.wait(); code != done {
		d.t.Fatalf("the agent ended with exit code %d:\n%s", code, d.log.text())
	}
}

// wait returns the exit code of an agent that ends.
func (d *daemon) wait() int {
	d.t.Helper()
	select {
	case <-d.exited:
	case <-time.After(patience):
		d.t.Fatalf("the agent did not end within %s:\n%s", patience, d.log.text())
	}
	return d.process.ProcessState.ExitCode()
}

// kill ends the agent as a crash would.
func (d *daemon) kill() {
	select {
	case <-d.exited:
	default:
		_ = d.process.Process.Kill() // it may have ended meanwhile
		<-d.exited
	}
}

// refuses requires that the agent does not start, and that the last line it
// says tells why.
func (d *daemon) refuses(code int, words ...string) {
	d.t.Helper()
	if got := d.wait(); got != code {
		d.t.Errorf("%s: exit code %d instead of %d", d.process, got, code)
	}
	lines := strings.Split(strings.TrimSpace(d.log.text()), "\n")
	last := lines[len(lines)-1]
	if !strings.HasPrefix(last, "keyhole: ") {
		d.t.Errorf("%s: its last line is no error: %q", d.process, last)
	}
	containsAll(d.t, d.process.String(), last, words...)
}

// transcript is what a program wrote, for whoever waits for something in it.
type transcript struct {
	mu     sync.Mutex
	said   strings.Builder
	ended  bool
	change chan struct{} // closed at the next change
}

func newTranscript() *transcript { return &transcript{change: make(chan struct{})} }

func (l *transcript) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.said.Write(p)
	close(l.change)
	l.change = make(chan struct{})
	return len(p), nil
}

func (l *transcript) end() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = true
	close(l.change)
	l.change = make(chan struct{})
}

func (l *transcript) text() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.String()
}

// await waits for words behind the given place, and reports whether they came.
func (l *transcript) await(t *testing.T, from int, words string) bool {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for {
		l.mu.Lock()
		found, ended, change := strings.Contains(l.said.String()[from:], words), l.ended, l.change
		l.mu.Unlock()
		if found || ended {
			return found
		}
		select {
		case <-change:
		case <-deadline.C:
			return false
		case <-t.Context().Done():
			return false
		}
	}
}

// eventually repeats what is to be observed until it is.
func eventually(t *testing.T, what string, observed func() bool) {
	t.Helper()
	ticker := time.NewTicker(20 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	for !observed() {
		select {
		case <-ticker.C:
		case <-deadline.C:
			t.Fatalf("%s did not come within %s", what, patience)
		}
	}
}

// put writes a secret with one value, through a client.
func put(ctx context.Context, c *client.Client, path, key, value string) (secret.Version, error) {
	p, err := secret.ParsePath(path)
	if err != nil {
		return 0, err
	}
	values, err := secret.NewValues(map[string][]byte{key: []byte(value)})
	if err != nil {
		return 0, err
	}
	info, err := c.Put(ctx, p, values)
	if err != nil {
		return 0, err
	}
	return info.Latest, nil
}

// get reads a value, through a client.
func get(ctx context.Context, c *client.Client, path, key string, version secret.Version) (string, error) {
	p, err := secret.ParsePath(path)
	if err != nil {
		return "", err
	}
	k, err := secret.ParseKey(key)
	if err != nil {
		return "", err
	}
	got, err := c.Get(ctx, p, version)
	if err != nil {
		return "", err
	}
	defer got.Values.Wipe()
	value, found := got.Values.Get(k)
	if !found {
		return "", errors.New("the key is missing")
	}
	return string(value), nil
}
