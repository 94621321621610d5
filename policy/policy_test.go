// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"go.yaml.in/yaml/v3"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestPermissionsAreWrittenAsTheyAreRead(t *testing.T) {
	for text, want := range map[string]policy.Permission{
		"list": policy.List, "read": policy.Read, "write": policy.Write, "execute": policy.Execute, "super": policy.Super,
	} {
		got, err := policy.ParsePermission(text)
		if err != nil || got != want || got.String() != text {
			t.Errorf("ParsePermission(%q) = %v, %v", text, got, err)
		}
		marshalled, err := got.MarshalText()
		if err != nil || string(marshalled) != text {
			t.Errorf("MarshalText of %v = %q, %v", got, marshalled, err)
		}
		var back policy.Permission
		if err := back.UnmarshalText(marshalled); err != nil || back != want {
			t.Errorf("UnmarshalText(%q) = %v, %v", marshalled, back, err)
		}
	}
}

func TestUnknownPermissionsAreRefused(t *testing.T) {
	for _, text := range []string{"", "Read", "read ", "admin", "permission 9"} {
		if p, err := policy.ParsePermission(text); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("ParsePermission(%q) = %v, %v", text, p, err)
		}
		p := policy.Write
		if err := p.UnmarshalText([]byte(text)); !errors.Is(err, secret.ErrInvalid) || p != policy.Write {
			t.Errorf("UnmarshalText(%q) = %v, and left %v", text, err, p)
		}
	}
	for _, p := range []policy.Permission{0, 6, 255} {
		if text, err := p.MarshalText(); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("MarshalText of %d = %q, %v", uint8(p), text, err)
		}
	}
}

// valid returns a policy that compiles, with one change.
func valid(change func(*policy.Policy)) policy.Policy {
	p := policy.Policy{
		Name: "p", SPIFFEID: "spiffe://example.org/ns/{ns}/sa/{sa}", Path: "apps/{ns}/{sa}/**",
		Permissions: []policy.Permission{policy.Read},
	}
	if change != nil {
		change(&p)
	}
	return p
}

func TestAPolicyThatCannotWorkIsRefusedWithTheReason(t *testing.T) {
	name := func(s string) policy.Policy { return valid(func(p *policy.Policy) { p.Name = s }) }
	id := func(s string) policy.Policy { return valid(func(p *policy.Policy) { p.SPIFFEID, p.Path = s, "db/**" }) }
	path := func(s string) policy.Policy { return valid(func(p *policy.Policy) { p.Path = s }) }
	on := func(s string, permissions ...policy.Permission) policy.Policy {
		return valid(func(p *policy.Policy) { p.Path, p.Permissions = s, permissions })
	}
	for _, c := range []struct {
		policy policy.Policy
		reason string
	}{
		{name(""), "is empty"},
		{name("a/b"), "'/'"},
		{name("app read"), "' '"},
		{name("administrators"), "reserved"},

		{id(""), "does not begin with spiffe://"},
		{id("example.org/a"), "does not begin with spiffe://"},
		{id("SPIFFE://example.org/a"), "does not begin with spiffe://"},
		{id("spiffe://"), "trust domain"},
		{id("spiffe:///a"), "trust domain"},
		{id("spiffe://example.org"), "spiffe://example.org/**"},
		{id("spiffe://example.org/"), "segment 1: path cannot contain empty segments"},
		{id("spiffe://example.org/a/"), "segment 2"},
		{id("spiffe://example.org//a"), "segment 1"},
		{id("spiffe://example.org/a/../b"), "segment 2"},
		{id("spiffe://example.org/a%2fb"), "segment 1"},
		{id("spiffe://example.org/a?b"), "segment 1"},
		{id("spiffe://Example.org/a"), "lowercase"},
		{id("spiffe://example.org:443/a"), "trust domain"},
		{id("spiffe://*/a"), `"*" is not literal`},
		{id("spiffe://*.org/a"), "is not literal"},
		{id("spiffe://{td}/a"), "is not literal"},
		{id("spiffe://example.org/web*"), "a wildcard is a whole segment"},
		{id("spiffe://example.org/***"), "a wildcard is a whole segment"},
		{id("spiffe://example.org/ns-{ns}"), "a capture is a whole segment"},
		{id("spiffe://example.org/{ns"), "a capture is a whole segment"},
		{id("spiffe://example.org/{{ns}}"), "a capture is a whole segment"},
		{id("spiffe://example.org/{}"), "0 bytes"},
		{id("spiffe://example.org/{a-b}"), "'-' at byte 1"},
		{id("spiffe://example.org/{" + strings.Repeat("n", 33) + "}"), "33 bytes"},
		{id("spiffe://example.org/{ns}/{ns}"), "{ns} occurs twice"},
		{id("spiffe://example.org/**/{ns}/**"), "** only once"},
		{id("spiffe://example.org" + strings.Repeat("/a", 33)), "more than 32 segments"},
		{id("spiffe://example.org/" + strings.Repeat("a", 2048)), "at most 2048"},

		{path(""), "** matches every secret"},
		{path("/db"), "segment 1"},
		{path("db/"), "segment 2"},
		{path("db//x"), "segment 2"},
		{path("db/foo*"), "a wildcard is a whole segment"},
		{path("db/*.pem"), "a wildcard is a whole segment"},
		{path("db/**x"), "a wildcard is a whole segment"},
		{path("db/{ns}x"), "a capture is a whole segment"},
		{path("db/{nope}"), "captures no such name"},
		{path("db/a b"), "' ' at byte 1"},
		{path("db/..x"), "reserved for the filesystem"},
		{path("db/ü"), "'ü'"},
		{path("purge"), "reserved"},
		{path(strings.Repeat("a/", 32) + "a"), "more than 32 segments"},
		{path(strings.Repeat("a", 254)), "254 bytes"},
		{path(strings.Repeat(strings.Repeat("a", 200)+"/", 2) + strings.Repeat("a", 200)), "602 bytes"},

		{path("sys"), "no such power; known are sys/audit, sys/backup"},
		{path("sys/nope"), "no such power"},
		{path("sys/purge/x"), "no such power"},
		{path("sys/cipher"), "no such power"},
		{path("sys/cipher/a/b"), "no such power"},
		{path("sys/*"), "written literally"},
		{path("sys/**"), "written literally"},
		{path("sys/{ns}"), "written literally"},
		{path("sys/cipher/{ns}"), "written literally"},
		{path("sys/cipher/*"), "written literally"},

		{on("db"), "there is none"},
		{on("db", policy.Read, policy.Read), "read is listed twice"},
		{on("db", policy.Permission(0)), "permission 0"},
		{on("db", policy.Permission(77)), "permission 77"},
		{on("db", policy.Execute), "only for a path sys/cipher/NAME"},
		{on("**", policy.Read, policy.Execute), "only for a path sys/cipher/NAME"},
		{on("sys/purge", policy.Read), "no secrets to read"},
		{on("sys/purge", policy.Super, policy.List), "no secrets to list"},
		{on("sys/purge", policy.Execute), "super is the power"},
		{on("sys/cipher/tokens", policy.Write), "no secrets to write"},
	} {
		set, err := policy.Compile([]policy.Policy{c.policy}, nil)
		if set != nil || !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("Compile(%+v) = %v, %v", c.policy, set, err)
			continue
		}
		if !strings.Contains(err.Error(), c.reason) || !strings.Contains(err.Error(), fmt.Sprintf("policy %q", c.policy.Name)) {
			t.Errorf("Compile(%+v): %v\nlacks %q, or the name", c.policy, err, c.reason)
		}
	}
}

func TestPatternsAtTheBoundsCompile(t *testing.T) {
	for _, p := range []policy.Policy{
		valid(nil),
		valid(func(p *policy.Policy) { p.Path = strings.Repeat("*/", 31) + "**" }),
		valid(func(p *policy.Policy) { p.Path = strings.Repeat("**/", 31) + "**" }),
		valid(func(p *policy.Policy) { p.Path = "purge/x" }),
		valid(func(p *policy.Policy) { p.Path = "*" }),
		valid(func(p *policy.Policy) { p.Path = "**/sys/nope" }),
		valid(func(p *policy.Policy) { p.SPIFFEID = "spiffe://example.org/{sa}/**/**/{ns}" }),
		valid(func(p *policy.Policy) {
			p.SPIFFEID, p.Path = "spiffe://example.org/"+strings.Repeat("*/", 31)+"{last}", "{last}"
		}),
		valid(func(p *policy.Policy) { p.SPIFFEID, p.Path = "spiffe://example.org/{"+strings.Repeat("n", 32)+"}", "x" }),
		valid(func(p *policy.Policy) { p.Path, p.Permissions = "sys/purge", []policy.Permission{policy.Super} }),
		valid(func(p *policy.Policy) {
			p.Path, p.Permissions = "sys/cipher/tokens", []policy.Permission{policy.Execute, policy.Super}
		}),
	} {
		if _, err := policy.Compile([]policy.Policy{p}, nil); err != nil {
			t.Errorf("Compile(%+v): %v", p, err)
		}
	}
}

func TestCompileNamesEveryPolicyThatIsWrong(t *testing.T) {
	wrong := func(name string) policy.Policy {
		return valid(func(p *policy.Policy) { p.Name, p.Path = name, "a*" })
	}
	_, err := policy.Compile([]policy.Policy{wrong("first"), valid(nil), wrong("second")}, nil)
	if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), `"first"`) || !strings.Contains(err.Error(), `"second"`) {
		t.Errorf("Compile: %v", err)
	}
	many := make([]policy.Policy, 1000)
	for i := range many {
		many[i] = wrong(fmt.Sprintf("n%d", i))
	}
	_, err = policy.Compile(many, nil)
	if !errors.Is(err, secret.ErrInvalid) || !strings.HasSuffix(err.Error(), "and 980 more") {
		t.Errorf("Compile of a thousand wrong policies: %v", err)
	}
}

func TestTwoPoliciesOfOneNameAreRefused(t *testing.T) {
	_, err := policy.Compile([]policy.Policy{valid(nil), valid(nil)}, nil)
	if !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), `policy "p": there are two`) {
		t.Errorf("Compile: %v", err)
	}
}

func TestAnAdministratorNeedsAPath(t *testing.T) {
	for _, id := range []spiffeid.ID{{}, spiffeid.RequireFromString("spiffe://example.org")} {
		if _, err := policy.Compile(nil, []spiffeid.ID{id}); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("Compile with administrator %q: %v", id, err)
		}
	}
}

const example = `policies:
  - name: app-read
    spiffe_id: spiffe://dev.keyhole.test/uid/1001
    path: db/**
    permissions: [read, list]
`

func TestAFileIsReadAsItIsWritten(t *testing.T) {
	want := policy.Policy{
		Name: "app-read", SPIFFEID: "spiffe://dev.keyhole.test/uid/1001", Path: "db/**",
		Permissions: []policy.Permission{policy.Read, policy.List},
	}
	for _, text := range []string{example, "# comment\n---\n" + example + "...\n", strings.ReplaceAll(example, "\n", "\r\n")} {
		got, err := policy.ParseFile([]byte(text))
		if err != nil || len(got) != 1 || fmt.Sprint(got[0]) != fmt.Sprint(want) {
			t.Errorf("ParseFile(%q) = %v, %v", text, got, err)
		}
	}
	written, err := yaml.Marshal(map[string][]policy.Policy{"policies": {want}})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := policy.ParseFile(written); err != nil || fmt.Sprint(got) != fmt.Sprint([]policy.Policy{want}) {
		t.Errorf("ParseFile of what yaml.Marshal wrote:\n%s= %v, %v", written, got, err)
	}
}

func TestScalarsAreTakenAsTheyAreWritten(t *testing.T) {
	text := "policies:\n  - name: 010\n    spiffe_id: spiffe://td/1\n    path: true\n    permissions: [read]\n"
	got, err := policy.ParseFile([]byte(text))
	if err != nil || got[0].Name != "010" || got[0].Path != "true" {
		t.Errorf("ParseFile = %v, %v", got, err)
	}
}

func TestAFileThatIsWrongIsRefusedWithTheLine(t *testing.T) {
	with := func(old, replacement string) string { return strings.Replace(example, old, replacement, 1) }
	second := strings.TrimPrefix(example, "policies:\n")
	for _, c := range []struct{ text, reason string }{
		{"", "line 1: invalid policies: the file is empty"},
		{"# only a comment\n", "the file is empty"},
		{"---\n", "a mapping is expected"},
		{"policies:\n", "line 1: invalid policies: policies is a list"},
		{"policies: []\n", "line 1: invalid policies: the list of policies is empty"},
		{"policies: {}\n", "policies is a list"},
		{"- name: x\n", "line 1: invalid policies: a mapping is expected"},
		{"policies: [\n", "yaml"},
		{"policies:\n\t- x", "line 2"},
		{"policies:\n  - \xff", "line 2: invalid policies: the byte 0xff"},
		{"policies:\n  - x\n", "line 2: invalid policies: a mapping is expected"},
		{example + "---\n" + example, "line 6: invalid policies: a second document"},
		{example + "---\n", "line 6: invalid policies: a second document"},
		{example + "policies: []\n", `line 6: invalid policies: the key "policies" is on line 1 already`},
		{example + "rules: []\n", `line 6: invalid policies: unknown key "rules"`},
		{example + "    deny: x\n", `line 6: invalid policies: unknown key "deny"; known are name, spiffe_id, path, permissions`},
		{example + "    path: x\n", `line 6: invalid policies: the key "path" is on line 4 already`},
		{example + "    <<: x\n", `unknown key "<<"`},
		{example + second, `line 6: invalid policies: there is a policy "app-read" on line 2 already`},
		{with("    path: db/**\n", ""), `line 2: invalid policies: the key "path" is missing`},
		{with("app-read", ""), "line 2: invalid policies: name has no value"},
		{with("app-read", "~"), "line 2: invalid policies: name has no value"},
		{with("app-read", "&a x"), "line 2: invalid policies: anchors"},
		{with("app-read", "!!binary eA=="), "line 2: invalid policies: tags"},
		{with("app-read", "[x]"), "line 2: invalid policies: name is text"},
		{with("app-read", "&a x") + strings.Replace(second, "app-read", "*a", 1), "line 2: invalid policies: anchors"},
		{with("db/**", "**"), "begins with * or { is quoted, see line 4"},
		{with("db/**", "*"), "begins with * or { is quoted, see line 4"},
		{with("db/**", "*x"), "begins with * or { is quoted, see line 4"},
		{with("db/**", "{uid}"), "line 4: invalid policies: path is text; it is quoted"},
		{with("db/**", "{uid}/x"), "begins with * or { is quoted, see line 4"},
		{with("db/**", "db/x*"), `line 4: invalid policy "app-read": path "db/x*": segment 2`},
		{with("[read, list]", "[raed]"), `line 5: policy "app-read": invalid permission "raed"`},
		{with("[read, list]", "[read, read]"), `line 5: invalid policy "app-read": permissions [read read]: read is listed twice`},
		{with("[read, list]", "[]"), `line 5: invalid policy "app-read": permissions []: there is none`},
		{with("[read, list]", "read"), "line 5: invalid policies: permissions is a list"},
		{with("[read, list]", "[[read]]"), "line 5: invalid policies: a permission is text"},
		{with("spiffe://", "spiffe:"), `line 3: invalid policy "app-read": spiffe_id`},
	} {
		got, err := policy.ParseFile([]byte(c.text))
		if got != nil || !errors.Is(err, secret.ErrInvalid) || !strings.Contains(err.Error(), c.reason) {
			t.Errorf("ParseFile(%q) = %v, %v\nlacks %q", c.text, got, err, c.reason)
		}
	}
}

func TestAFileTellsAllThatIsWrong(t *testing.T) {
	text := example + `  - name: second
    spiffe_id: spiffe://td/x
    path: a*
    permissions: [read]
  - name: third
`
	_, err := policy.ParseFile([]byte(text))
	if err == nil || !strings.Contains(err.Error(), "line 8: ") || !strings.Contains(err.Error(), "line 10: ") {
		t.Errorf("ParseFile: %v", err)
	}
}

func FuzzParseFile(f *testing.F) {
	f.Add([]byte(example))
	f.Add([]byte("policies:\n  - {name: a, spiffe_id: 'spiffe://td/{a}/**', path: '{a}/*', permissions: [super]}\n"))
	f.Add([]byte("a: &x [*x]\n---\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		policies, err := policy.ParseFile(data)
		if err != nil {
			if !errors.Is(err, secret.ErrInvalid) {
				t.Fatalf("ParseFile(%q): %v", data, err)
			}
			return
		}
		if _, err := policy.Compile(policies, nil); err != nil {
			t.Fatalf("ParseFile(%q) accepted what Compile does not: %v", data, err)
		}
		written, err := yaml.Marshal(map[string][]policy.Policy{"policies": policies})
		if err != nil {
			t.Fatal(err)
		}
		again, err := policy.ParseFile(written)
		if err != nil || fmt.Sprint(again) != fmt.Sprint(policies) {
			t.Fatalf("ParseFile(%q) does not survive being written: %v, %v", data, again, err)
		}
	})
}
