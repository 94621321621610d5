// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func TestASecondAgentIsToldWhoTheFirstIs(t *testing.T) {
	begin(t)
	s, other := newSite(t), newSite(t)
	s.init().ok()
	other.init().ok()
	first := s.start()
	first.as(root).keyhole("secret", "put", "db/creds", "password=x").ok()
	pid := strconv.Itoa(first.process.Process.Pid)
	for what, flags := range map[string][]string{
		"store":  {"--store.path", s.path("store", "keyhole.db"), "--unlock.keyfile", s.path("root.key")},
		"socket": {"--socket", s.path("agent.sock")},
		"admin":  {"--admin_socket", s.path("admin.sock")},
		"mount":  {"--mount.path", s.path("fs")},
	} {
		second := other.launch(flags...)
		second.refuses(failed, "in use by another agent", "process "+pid)
		if t.Failed() {
			t.Fatalf("a second agent on the same %s:\n%s", what, second.log.text())
		}
		first.as(root).keyhole("secret", "get", "db/creds", "password").says("x")
		first.as(root).cat(first.file("db/creds", "password")).says("x")
	}
	first.as(root).keyhole("audit", "verify", "--offline", "--config", s.config()).fails(failed, "in use by another agent", "process "+pid)
	first.stop()
	first.as(root).keyhole("audit", "verify", "--offline", "--config", s.config()).shows(", 0 problems")
	other.start().as(root).keyhole("secret", "list").says("")
}

func TestASecondDevelopmentAgentIsToldWhoTheFirstIs(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.storeSesame()
	launch(t, d.dir, run.keyhole, "dev", "--dir", d.dir).refuses(failed, "in use by another agent", "process "+strconv.Itoa(d.process.Process.Pid))
	// It left everything to the first.
	shell := session{t: t, environ: []string{"PATH=" + run.dir + ":/bin:/usr/bin"}}
	shell.sh(". " + d.path("env") + " && keyhole secret get db/creds password").says(sesame)
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
	d.verifies()
	d.stop()
	nothingIsLeft(t, d)
}

func TestAPathIsASecretOrAFolder(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	r := d.as(root)
	r.keyhole("secret", "put", "a/b", "k=v").ok()
	r.keyhole("secret", "put", "a", "k=v").fails(conflict, "a is a folder")
	r.keyhole("secret", "put", "s", "k=v").ok()
	r.keyhole("secret", "put", "s/t", "k=v").fails(conflict, "path is taken", "s")
	r.keyhole("secret", "put", "s/t/u", "k=v").fails(conflict, "path is taken", "s")
	// An empty secret keeps its path, until it is purged.
	r.keyhole("secret", "delete", "s").ok()
	r.keyhole("secret", "put", "s/t", "k=v").fails(conflict, "path is taken", "s")
	r.keyhole("secret", "purge", "--force").ok()
	r.keyhole("secret", "put", "s/t", "k=v").ok()
	r.keyhole("secret", "list").shows("a/b", "s/t")
	r.cat(d.file("s/t", "k")).says("v")
}

func TestOfASecretAndAFolderAtOnceOneWins(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	clients := []string{"%s", "%s/b", "%s/b/c"} // each excludes the others
	for round := range rounds(40, 1000) {
		path := fmt.Sprintf("race%d", round)
		answers := make([]error, len(clients))
		var all sync.WaitGroup
		for i, form := range clients {
			c := d.client()
			all.Go(func() {
				_, answers[i] = put(t.Context(), c, fmt.Sprintf(form, path), "key", form)
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			})
		}
		all.Wait()
		won := ""
		for i, err := range answers {
			switch {
			case err == nil && won != "":
				t.Errorf("both %s and %s were written", won, fmt.Sprintf(clients[i], path))
			case err == nil:
				won = fmt.Sprintf(clients[i], path)
			case !errors.Is(err, secret.ErrExists):
				t.Errorf("putting "+clients[i]+": %v", path, err)
			}
		}
		if listed := strings.Fields(d.as(root).keyhole("secret", "list", path).ok()); won == "" || won != path && (len(listed) != 1 || listed[0] != won) {
			t.Errorf("%q won, and the list has %q", won, listed)
		}
	}
	// The same through processes.
	var all sync.WaitGroup
	codes := make([]int, 2)
	for i, path := range []string{"cli", "cli/b"} {
		all.Go(func() { codes[i] = d.as(root).keyhole("secret", "put", path, "k=v").code })
	}
	all.Wait()
	if codes[0]+codes[1] != conflict || codes[0]*codes[1] != 0 {
		t.Errorf("the exit codes are %d", codes)
	}
	d.verifies()
}

func TestConcurrentWritersOfOneSecretLoseNothing(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	const each = 20
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var mu sync.Mutex
	written := map[secret.Version]string{}
	var all sync.WaitGroup
	for writer := range writers {
		c := d.client()
		all.Go(func() {
			for n := range each {
				value := fmt.Sprintf("writer %d, write %d", writer, n)
				version, err := put(ctx, c, "shared", "key", value)
				mu.Lock()
				if before, taken := written[version]; err != nil || taken {
					t.Errorf("version %d, which was %q: %v", version, before, err)
				}
				written[version] = value
				mu.Unlock()
			}
		})
	}
	all.Wait()
	c := d.client()
	for version := secret.Version(1); version <= writers*each; version++ {
		if got, err := get(ctx, c, "shared", "key", version); err != nil || got != written[version] {
			t.Errorf("version %d is %q, %v instead of %q", version, got, err, written[version])
		}
	}
}
