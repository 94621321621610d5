// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

const goodRules = `# who is who
workloads:
  - spiffe_id: spiffe://dev.keyhole.test/web
    uid: 1001
    gid: 33
    executable: /usr/bin/nginx
  - sha256: 2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae
    spiffe_id: spiffe://dev.keyhole.test/batch
`

func TestRulesAreReadFromAFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "workloads.yaml")
	if err := os.WriteFile(path, []byte(goodRules), 0o600); err != nil {
		t.Fatal(err)
	}
	rules, err := LoadRules(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(rules) != 2 {
		t.Fatalf("%d rules", len(rules))
	}
	web, batch := rules[0], rules[1]
	if web.IDs[0] != dev("/web") || *web.UID != 1001 || *web.GID != 33 || web.Executable != "/usr/bin/nginx" || len(web.SHA256) != 0 {
		t.Errorf("the first rule is %+v", web)
	}
	if batch.IDs[0] != dev("/batch") || batch.UID != nil || batch.GID != nil || len(batch.SHA256) != 32 || batch.SHA256[0] != 0x2c {
		t.Errorf("the second rule is %+v", batch)
	}
	if _, err := LoadRules(path + ".missing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing file: %v", err)
	}
}

func TestWhatIsWrongWithRulesIsSaidWithItsLine(t *testing.T) {
	const id = "workloads:\n  - spiffe_id: spiffe://dev.keyhole.test/a\n"
	for name, test := range map[string]struct{ text, want string }{
		"unknown field":       {id + "    user: 1\n", "line 3: field user not found"},
		"unknown top level":   {"workload: []\n", "line 1: field workload not found"},
		"doubled field":       {id + "    uid: 1\n    uid: 2\n", `line 4: mapping key "uid" already defined at line 3`},
		"no condition":        {id, "line 2: invalid rule: it needs at least one of"},
		"empty condition":     {id + "    gid: 5\n    uid:\n", "line 4: invalid rule: uid has no value"},
		"empty text":          {id + "    gid: 5\n    sha256: \"\"\n", "line 4: invalid rule: sha256 has no value"},
		"negative uid":        {id + "    uid: -1\n", "line 3: cannot unmarshal"},
		"huge uid":            {id + "    uid: 4294967296\n", "line 3: cannot unmarshal"},
		"relative executable": {id + "    executable: nginx\n", "line 2: invalid rule: the executable \"nginx\" is not an absolute path"},
		"short sum":           {id + "    sha256: 2c26\n", "line 2: invalid rule: a SHA-256 has 32 bytes, not 2"},
		"odd sum":             {id + "    sha256: xy\n", "line 2: invalid rule: sha256 is not hexadecimal"},
		"no ID":               {"workloads:\n  - uid: 1\n", `line 2: invalid rule: spiffe_id ""`},
		"malformed ID":        {"workloads:\n  - {spiffe_id: web, uid: 1}\n", `line 2: invalid rule: spiffe_id "web"`},
		"ID without path":     {"workloads:\n  - {spiffe_id: 'spiffe://dev.keyhole.test', uid: 1}\n", "has no path"},
		"two documents":       {goodRules + "---\nworkloads: []\n", "more than one YAML document"},
		"no YAML":             {"workloads:\n\t- x", "line 2"},
		"a list":              {"- uid: 1\n", "line 1: cannot unmarshal"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseRules([]byte(test.text))
			if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
	for name, text := range map[string]string{"nothing": "", "a comment": "# later\n", "an empty list": "workloads: []\n"} {
		if rules, err := ParseRules([]byte(text)); err != nil || len(rules) != 0 {
			t.Errorf("%s: %v, %v", name, rules, err)
		}
	}
}

func FuzzRulesThatParseAreUsable(f *testing.F) {
	f.Add([]byte(goodRules))
	f.Add([]byte("workloads: [{spiffe_id: spiffe://a/b, uid: 0}]"))
	f.Add([]byte("workloads:\n  - &x {spiffe_id: spiffe://a/b, uid: 1}\n  - *x\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		rules, err := ParseRules(text)
		if err != nil {
			if !errors.Is(err, secret.ErrInvalid) {
				t.Errorf("an error of another kind: %v", err)
			}
			return
		}
		for _, rule := range rules {
			if len(rule.IDs) != 1 {
				t.Errorf("a rule with %d IDs", len(rule.IDs))
			}
			if err := rule.check(rule.IDs[0].TrustDomain()); err != nil {
				t.Error(err)
			}
		}
	})
}
