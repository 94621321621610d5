// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

func TestMalformedInputIsNamedAndChangesNothing(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	d.storeSesame()
	r := d.as(root)
	const someID = "spiffe://dev.keyhole.test/a"
	for _, c := range []struct {
		command string
		words   []string
	}{
		{"secret put db//creds k=v", []string{`"db//creds"`, "segment 2 is empty"}},
		{"secret put /db/creds k=v", []string{`"/db/creds"`, "segment 1 is empty"}},
		{"secret get db/../creds", []string{`"db/../creds"`, `begins with ".."`}},
		{"secret get db/cr%65ds", []string{`'%' at byte 2`}},
		{"secret delete db/cre:ds", []string{`':' at byte 3`}},
		{"secret put db/creds pass/word=x", []string{`key "pass/word"`, `'/' at byte 4`}},
		{"secret put db/creds ..json=x", []string{`key "..json"`, "reserved"}},
		{"secret put db/creds =x", []string{`key ""`, "empty"}},
		{"secret put db/creds k=1 k=2", []string{"the key k is given twice"}},
		{"secret put db/creds k", []string{"no terminal", "KEY=@-"}},
		{"secret put db/creds k=@/nonexistent/file", []string{"/nonexistent/file", "no such file"}},
		{"secret put sys/purge k=v", []string{`"sys/purge"`, "reserved"}},
		{"secret put purge k=v", []string{`"purge"`, "reserved"}},
		{"secret get db/creds --version -1", []string{"--version"}},
		{"secret purge --force --older-than 3x", []string{"older-than", `"3x"`}},
		{"secret purge --force --dry-run", []string{"force", "dry-run"}},
		{"secret frobnicate", []string{`"frobnicate"`, "--help"}},
		{"policy explain spiffe:/dev.keyhole.test/a read db/creds", []string{"SPIFFE ID", "scheme"}},
		{"policy explain " + someID + " eat db/creds", []string{`"eat"`, "read"}},
		{"policy explain " + someID + " read db//creds", []string{`"db//creds"`}},
	} {
		r.keyhole(strings.Fields(c.command)...).fails(usage, c.words...)
	}
	d.as(root).cat(d.file("db/creds", "password")).says(sesame)
	r.keyhole("secret", "list").shows("db/creds")
	r.keyhole("policy", "list").says("NAME  SPIFFE ID  PATH  PERMISSIONS\n")
}

func TestABadPolicyFileIsRefusedAsAWhole(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	good := "policies:\n  - name: good\n    spiffe_id: spiffe://dev.keyhole.test/a\n    path: db/**\n    permissions: [read]\n"
	for _, c := range []struct {
		document string
		words    []string
	}{
		{"", []string{"line 1", "empty"}},
		{good + "    owner: me\n", []string{"line 6", `unknown key "owner"`}},
		{good + "    path: web/**\n", []string{"line 6", `"path" is on line 4`}},
		{good + "policies: []\n", []string{"line 6", `"policies" is on line 1`}},
		{good + "  - {name: good, spiffe_id: spiffe://dev.keyhole.test/b, path: x, permissions: [read]}\n", []string{"line 6", `"good"`, "line 2"}},
		{good + "  - {name: b, spiffe_id: \"spiffe://*/b\", path: x, permissions: [read]}\n", []string{"line 6"}},
		{good + "  - {name: b, spiffe_id: dev.keyhole.test/b, path: x, permissions: [read]}\n", []string{"line 6", "dev.keyhole.test/b"}},
		{good + "  - {name: b, spiffe_id: spiffe://dev.keyhole.test/b, path: x//y, permissions: [read]}\n", []string{"line 6", "x//y"}},
		{good + "  - {name: b, spiffe_id: spiffe://dev.keyhole.test/b, path: x, permissions: [own]}\n", []string{"line 6", `"own"`}},
		{good + "  - {name: b, spiffe_id: spiffe://dev.keyhole.test/b, path: \"apps/{ns}/**\", permissions: [read]}\n", []string{"line 6", "ns"}},
		{good + "  - {name: b, path: x, permissions: [read]}\n", []string{"line 6", `"spiffe_id" is missing`}},
		{good + "---\n" + good, []string{"line 6", "second document"}},
		{good + "  - name: &x b\n", []string{"line 6"}},
	} {
		d.as(root).with(c.document).keyhole("policy", "apply", "-f", "-").fails(usage, c.words...)
	}
	d.as(root).keyhole("policy", "list").says("NAME  SPIFFE ID  PATH  PERMISSIONS\n")
	d.as(root).with(good).keyhole("policy", "apply", "-f", "-").says("applied good\n")
	d.as(root).keyhole("policy", "delete", "bad").fails(notFound, `"bad"`)
	d.as(root).keyhole("policy", "delete", "good").says("deleted good\n")
}

func TestAnAgentSaysWhatIsWrongWithItsConfiguration(t *testing.T) {
	begin(t)
	s := newSite(t)
	s.init().ok()
	written, err := os.ReadFile(s.config())
	if err != nil {
		t.Fatal(err)
	}
	good := string(written)
	shell := session{t: t, environ: []string{"PATH=" + os.Getenv("PATH")}}
	shell.keyhole("agent", "--check-config", "--config", s.config()).shows("trust_domain: example.org")
	lines := strings.Count(good, "\n")
	for _, c := range []struct {
		document string
		words    []string
	}{
		{good + "colour: red\n", []string{"line ", "colour"}},
		{good + "trust_domain: example.com\n", []string{"line ", "trust_domain"}},
		{good + "store: {paht: /x}\n", []string{"line "}},
		{good + "\tx: 1\n", []string{"line "}},
		{good + "---\ntrust_domain: example.com\n", []string{"more than one document"}},
		{strings.Replace(good, "trust_domain: example.org", "trust_domain: Example/org", 1), []string{"trust_domain"}},
		{strings.Replace(good, "spiffe://example.org/uid/0", "https://example.org/uid/0", 1), []string{"administrators", "https://example.org/uid/0"}},
		{strings.Replace(good, "driver: sqlite", "driver: mysql", 1), []string{"store.driver", "mysql"}},
		{strings.Replace(good, "enabled: true", "enabled: perhaps", 1), []string{"line ", "perhaps"}},
		{strings.Replace(good, "path: "+s.path("store", "audit"), "path: audit", 1), []string{"audit.path", "absolute"}},
	} {
		if c.document == good {
			t.Fatalf("the configuration has no such setting as in %q:\n%s", c.words, good)
		}
		write(t, s.config(), c.document, 0o600)
		shell.keyhole("agent", "--check-config", "--config", s.config()).fails(usage, append(c.words, s.config())...)
		s.launch().refuses(usage, c.words...)
	}
	write(t, s.config(), good+"colour: red\n", 0o600)
	shell.keyhole("agent", "--check-config", "--config", s.config()).fails(usage, "line "+strconv.Itoa(lines+1))

	write(t, s.config(), good, 0o600)
	bad := shell
	bad.environ = append(bad.environ, "KEYHOLE_STORE_DRIVER=oracle")
	bad.keyhole("agent", "--check-config", "--config", s.config()).fails(usage, "store.driver", "oracle")
	shell.keyhole("agent", "--config", s.path("nowhere.yaml")).fails(usage, s.path("nowhere.yaml"), "keyhole init")
	s.init().fails(conflict, s.config())
}

func TestInitSaysWhatIsMissingAndMakesNothing(t *testing.T) {
	begin(t)
	dir := folder(t)
	shell := session{t: t, environ: []string{"PATH=" + os.Getenv("PATH")}}
	base := []string{
		"init", "--config", filepath.Join(dir, "config.yaml"), "--store", filepath.Join(dir, "store", "keyhole.db"),
		"--audit", filepath.Join(dir, "store", "audit"),
	}
	for _, c := range []struct {
		args  []string
		words []string
	}{
		{[]string{"--trust-domain", "example.org"}, []string{"--administrator"}},
		{[]string{"--administrator", "spiffe://example.org/a"}, []string{"trust_domain"}},
		{[]string{"--trust-domain", "example.org", "--administrator", "example.org/a"}, []string{"administrators", "example.org/a"}},
		{[]string{"--trust-domain", "example.org", "--administrator", "spiffe://example.org"}, []string{"administrators", "whole trust domain"}},
		{[]string{"--trust-domain", "example.org", "--administrator", "spiffe://example.org/a", "--unlock", "hope"}, []string{"hope", "keyfile", "password"}},
		{[]string{"--trust-domain", "example.org", "--administrator", "spiffe://example.org/a", "--unlock", "password"}, []string{"--password-file"}},
	} {
		shell.keyhole(append(base, c.args...)...).fails(usage, c.words...)
	}
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("init that failed left %v, %v", left, err)
	}
}

func TestValuesThatAreTooLargeAreRefused(t *testing.T) {
	begin(t)
	d := startDev(t, filepath.Join(folder(t), "d"))
	const limit = 1<<20 - len("k")
	r := d.as(root)
	r.with(strings.Repeat("x", limit)).keyhole("secret", "put", "big/one", "k=@-").ok()
	r.with(strings.Repeat("x", limit+1)).keyhole("secret", "put", "big/one", "k=@-").fails(usage, "too large", "1048576")
	r.with(strings.Repeat("x", limit)).keyhole("secret", "put", "big/two", "k=@-", "l=y").fails(usage, "too large", "1048576")
	many := []string{"secret", "put", "big/many"}
	for i := range 129 {
		many = append(many, "k"+strconv.Itoa(i)+"=x")
	}
	r.keyhole(many...).fails(usage, "too large", "128")
	r.keyhole(many[:131]...).ok()
	if got := r.keyhole("secret", "get", "big/one", "k").ok(); got != strings.Repeat("x", limit) {
		t.Errorf("the largest value came back as %d bytes", len(got))
	}
	if got := r.cat(d.file("big/one", "k")).ok(); got != strings.Repeat("x", limit) {
		t.Errorf("the largest file has %d bytes", len(got))
	}
	r.keyhole("secret", "metadata", "big/two").fails(notFound)
}
