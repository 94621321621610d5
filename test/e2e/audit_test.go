// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// record is a line of the audit log, as its documentation has it.
type record struct {
	Format    string   `json:"format"` // of a header, which is no record
	Index     uint64   `json:"index"`
	Request   string   `json:"request"`
	Operation string   `json:"operation"`
	Phase     string   `json:"phase"`
	IDs       []string `json:"spiffe_ids"`
	Source    string   `json:"source"`
	PID       int      `json:"pid"`
	UID       uint32   `json:"uid"`
	Program   string   `json:"executable"`
	Path      string   `json:"path"`
	Decision  string   `json:"decision"`
	Deciding  string   `json:"deciding_id"`
	Policy    string   `json:"policy"`
	Reason    string   `json:"reason"`
}

// audited reads the whole audit log of an agent, without the agent.
func (d *daemon) audited() []record {
	d.t.Helper()
	segments, err := filepath.Glob(d.path("store", "audit", "audit-*.jsonl"))
	if err != nil || len(segments) == 0 {
		d.t.Fatalf("no segments of the audit log: %v", err)
	}
	slices.Sort(segments)
	var records []record
	for _, segment := range segments {
		text, err := os.ReadFile(segment)
		if err != nil {
			d.t.Fatal(err)
		}
		for line := range bytes.Lines(bytes.TrimRight(text, "\x00")) {
			var r record
			if err := json.Unmarshal(line, &r); err != nil {
				d.t.Fatalf("%s: %q: %v", segment, line, err)
			}
			if r.Format == "" {
				records = append(records, r)
			}
		}
	}
	return records
}

// mustHaveAudited requires a record like this one: each field that is set is the same;
// of the reason it is a part.
func (d *daemon) mustHaveAudited(want record) {
	d.t.Helper()
	records := d.audited()
	if !slices.ContainsFunc(records, want.describes) {
		var end strings.Builder
		for _, r := range records[max(0, len(records)-12):] {
			fmt.Fprintf(&end, "%+v\n", r)
		}
		d.t.Errorf("the audit log lacks %+v; it ends:\n%s", want, &end)
	}
}

// mustNotHaveAudited requires that there is no such record.
func (d *daemon) mustNotHaveAudited(what record) {
	d.t.Helper()
	records := d.audited()
	if at := slices.IndexFunc(records, what.describes); at >= 0 {
		d.t.Errorf("the audit log has %+v", records[at])
	}
}

func (r record) describes(got record) bool {
	return (r.Operation == "" || r.Operation == got.Operation) &&
		(r.Phase == "" || r.Phase == got.Phase) &&
		(r.IDs == nil || slices.Equal(r.IDs, got.IDs)) &&
		(r.Source == "" || r.Source == got.Source) &&
		(r.UID == 0 || r.UID == got.UID) &&
		(r.Program == "" || r.Program == got.Program) &&
		(r.Path == "" || r.Path == got.Path) &&
		(r.Decision == "" || r.Decision == got.Decision) &&
		(r.Deciding == "" || r.Deciding == got.Deciding) &&
		(r.Policy == "" || r.Policy == got.Policy) &&
		strings.Contains(got.Reason, r.Reason)
}

// verifies requires that the agent finds its audit log as it was written.
func (d *daemon) verifies() {
	d.t.Helper()
	d.as(root).keyhole("audit", "verify").shows(", 0 problems")
}

// spiffe returns SPIFFE IDs of the development trust domain.
func spiffe(paths ...string) []string {
	ids := make([]string, 0, len(paths))
	for _, path := range paths {
		ids = append(ids, "spiffe://dev.keyhole.test/"+path)
	}
	return ids
}

// mustNotLeak requires that a value that was stored is nowhere in the files of
// an agent.
func mustNotLeak(t *testing.T, dir, value string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry os.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return err
		}
		content, err := os.ReadFile(path)
		if bytes.Contains(content, []byte(value)) {
			t.Errorf("%s has a stored value in clear", path)
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
