// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"fmt"
	"path/filepath"
	"sync"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

// The file permission of the admin socket stands in for nothing.
func TestRootOnTheAdminSocketMayNotPurgeWithoutThePower(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	r := d.as(root)
	r.keyhole("secret", "put", "db/old", "key=value").ok()
	r.keyhole("secret", "delete", "db/old").ok()
	d.apply("policies:\n- {name: all, spiffe_id: \"spiffe://example.org/**\", path: \"**\", permissions: [super]}\n")
	d.stop()

	// Root is no administrator any more, but super on everything ordinary.
	d = s.start("--administrators", "spiffe://example.org/somebody/else")
	for _, way := range []func(session) session{asItIs, withoutCredential} {
		r := way(d.as(root))
		r.keyhole("secret", "purge", "--force").fails(denied, "permission denied")
		r.keyhole("secret", "purge", "--dry-run").fails(denied, "permission denied")
		r.keyhole("policy", "list").fails(denied, "permission denied")
		r.with(appRead).keyhole("policy", "apply", "-f", "-").fails(denied, "permission denied")
		r.keyhole("policy", "delete", "all").fails(denied, "permission denied")
		r.keyhole("policy", "explain", "spiffe://example.org/a", "read", "db/old").fails(denied, "permission denied")
		r.keyhole("audit", "verify").fails(denied, "permission denied")
		r.keyhole("status").shows("The agent serves")
		r.keyhole("secret", "metadata", "db/old").shows("empty since")
	}
	for _, source := range []string{"x509", "peer"} {
		for operation, path := range map[string]string{
			"purge": "sys/purge", "policy-apply": "sys/policies", "policy-delete": "sys/policies", "audit-verify": "sys/audit", "status": "sys/status",
		} {
			d.mustHaveAudited(record{Operation: operation, Path: path, Source: source, IDs: []string{"spiffe://example.org/uid/0"}, Decision: "denied"})
		}
	}
	d.mustNotHaveAudited(record{Operation: "purge", Decision: "allowed"})
	d.as(app).keyhole("secret", "purge", "--force").fails(denied, "admin.sock")
	d.stop()

	d = s.start()
	d.as(root).keyhole("secret", "purge", "--force").says("Purged 1 secret\n")
	d.mustHaveAudited(record{Operation: "purge", Path: "db/old", Phase: "outcome", Decision: "allowed"})
	d.verifies()
}

func TestAPolicyCanGiveThePowerToPurge(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	d := s.start()
	d.as(root).keyhole("secret", "put", "db/old", "key=value").ok()
	d.as(root).keyhole("secret", "delete", "db/old").ok()
	d.apply("policies:\n- {name: sweeper, spiffe_id: spiffe://example.org/uid/0, path: sys/purge, permissions: [super]}\n")
	d.stop()
	d = s.start("--administrators", "spiffe://example.org/somebody/else")
	d.as(root).keyhole("secret", "purge", "--force", "web").says("Purged 0 secrets\n")
	d.as(root).keyhole("secret", "purge", "--force").says("Purged 1 secret\n")
	d.as(root).keyhole("secret", "get", "db/old").fails(denied, "permission denied")
	d.mustHaveAudited(record{Operation: "purge", Path: "db/old", Phase: "outcome", Policy: "sweeper", Decision: "allowed"})
}

// A secret that is written while it is purged has what was written, whichever
// came first.
func TestAWriteToAPurgedPathIsNeverLost(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	writer, sweeper := d.client(), d.client()
	ctx := t.Context()
	purged := 0
	for round := range rounds(60, 2000) {
		path := fmt.Sprintf("purged/p%d", round%7)
		if _, err := put(ctx, writer, path, "key", "old"); err != nil {
			t.Fatal(err)
		}
		if _, err := writer.Delete(ctx, secret.MustParsePath(path), secret.Selection{All: true}); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprintf("round %d", round)
		var both sync.WaitGroup
		var version secret.Version
		both.Go(func() {
			var err error
			if version, err = put(ctx, writer, path, "key", want); err != nil {
				t.Errorf("writing %s while it is purged: %v", path, err)
			}
		})
		both.Go(func() {
			for step, err := range sweeper.Purge(ctx, secret.Purge{}) {
				if err != nil {
					t.Errorf("purging while %s is written: %v", path, err)
				}
				purged += len(step.Paths)
			}
		})
		both.Wait()
		if got, err := get(ctx, writer, path, "key", version); err != nil || got != want {
			t.Errorf("version %d of %s was acknowledged with %q, and is %q, %v", version, path, want, got, err)
		}
		if got, err := get(ctx, writer, path, "key", 0); err != nil || got != want {
			t.Errorf("%s is %q, %v instead of %q", path, got, err, want)
		}
	}
	t.Logf("%d purged", purged)
	if purged == 0 {
		t.Error("nothing was purged")
	}
	d.verifies()
	d.stop()
	d = startDev(t, d.dir)
	d.as(root).keyhole("secret", "list").shows("purged/p0", "purged/p6")
	d.verifies()
}
