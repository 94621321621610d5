// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

var all = []policy.Permission{policy.List, policy.Read, policy.Write, policy.Execute, policy.Super}

// compile makes a Set of lines such as "name: ID path read,list". IDs are
// written without spiffe://.
func compile(t testing.TB, lines ...string) *policy.Set {
	t.Helper()
	set, err := policy.Compile(parse(t, lines...), nil)
	if err != nil {
		t.Fatal(err)
	}
	return set
}

func parse(t testing.TB, lines ...string) []policy.Policy {
	t.Helper()
	policies := make([]policy.Policy, len(lines))
	for i, line := range lines {
		fields := strings.Fields(line)
		policies[i] = policy.Policy{Name: strings.TrimSuffix(fields[0], ":"), SPIFFEID: "spiffe://" + fields[1], Path: fields[2]}
		for text := range strings.SplitSeq(fields[3], ",") {
			p, err := policy.ParsePermission(text)
			if err != nil {
				t.Fatal(err)
			}
			policies[i].Permissions = append(policies[i].Permissions, p)
		}
	}
	return policies
}

func ids(texts ...string) []spiffeid.ID {
	parsed := make([]spiffeid.ID, len(texts))
	for i, text := range texts {
		parsed[i] = spiffeid.RequireFromString("spiffe://" + text)
	}
	return parsed
}

// path is secret.MustParsePath, with "" for the root.
func path(text string) secret.Path {
	if text == "" {
		return secret.Path{}
	}
	return secret.MustParsePath(text)
}

func TestPermissionsImplyWhatTheTableSays(t *testing.T) {
	for _, c := range []struct {
		path, given, allowed string
	}{
		{"db", "list", "list"},
		{"db", "read", "list read"},
		{"db", "write", "write"},
		{"db", "read,write", "list read write"},
		{"db", "super", "list read write execute super"},
		{"sys/purge", "super", "super"},
		{"sys/cipher/tokens", "execute", "execute"},
		{"sys/cipher/tokens", "super", "execute super"},
	} {
		set := compile(t, fmt.Sprintf("p: td/a %s %s", c.path, c.given))
		var allowed []string
		for _, want := range all {
			if set.Allows(ids("td/a"), want, path(c.path)).Allowed {
				allowed = append(allowed, want.String())
			}
		}
		if got := strings.Join(allowed, " "); got != c.allowed {
			t.Errorf("%s on %s allows %q, not %q", c.given, c.path, got, c.allowed)
		}
	}
}

func TestPathPatternsMatchWholeSegments(t *testing.T) {
	for _, c := range []struct{ pattern, match, differ string }{
		{"db/creds", "db/creds", "db db/cred db/creds2 db/creds/x x/db/creds DB/creds"},
		{"*", "db creds", "db/creds"},
		{"db/*", "db/creds db/x", "db db/a/b x/creds dbx/a"},
		{"*/creds", "db/creds x/creds", "creds a/b/creds creds/creds/creds"},
		{"**", "db db/creds a/b/c/d", ""},
		{"db/**", "db db/creds db/a/b", "dbx x/db x/db/creds"},
		{"**/creds", "creds a/creds a/b/creds creds/creds", "creds/a credsx"},
		{"a/**/z", "a/z a/b/z a/b/c/z a/z/z", "a z a/b az a/b/c/z/y"},
		{"**/a/**/b/**", "a/b x/a/y/b/z a/a/b/b a/b/a", "b/a a b b/b/a/a"},
		{"**/**", "a a/b", ""},
		{"**/*", "a a/b", ""},
		{"*/**/*", "a/b a/b/c", "a"},
		{"a/**/a/**/a", "a/a/a a/x/a/y/a a/a/a/a", "a a/a a/x/y/a"},
	} {
		set := compile(t, "p: td/a "+c.pattern+" read")
		for text := range strings.FieldsSeq(c.match) {
			if !set.Allows(ids("td/a"), policy.Read, path(text)).Allowed {
				t.Errorf("%s does not match %s", c.pattern, text)
			}
		}
		for text := range strings.FieldsSeq(c.differ) {
			if set.Allows(ids("td/a"), policy.Read, path(text)).Allowed {
				t.Errorf("%s matches %s", c.pattern, text)
			}
		}
	}
}

func TestSPIFFEIDPatternsMatchWholeSegments(t *testing.T) {
	for _, c := range []struct{ pattern, match, differ string }{
		{"td/a", "td/a", "td/A td/a/b td/ab other/a td2/a td.x/a"},
		{"td/*", "td/a td/b", "td td/a/b other/a"},
		{"td/**", "td/a td/a/b", "td other/a td.evil/a"},
		{"td/**/x", "td/x td/a/x td/a/b/x", "td/x/a"},
		{"td/**/a/**/b", "td/a/b td/x/a/y/b td/a/b/b", "td/b/a"},
		{"td/ns/{ns}/sa/{sa}", "td/ns/a/sa/b", "td/ns/a/sa td/ns/a/sa/b/c td/ns/a/b/c"},
	} {
		set := compile(t, "p: "+c.pattern+" db read")
		for text := range strings.FieldsSeq(c.match) {
			if !set.Allows(ids(text), policy.Read, path("db")).Allowed {
				t.Errorf("%s does not match %s", c.pattern, text)
			}
		}
		for text := range strings.FieldsSeq(c.differ) {
			if set.Allows(ids(text), policy.Read, path("db")).Allowed {
				t.Errorf("%s matches %s", c.pattern, text)
			}
		}
	}
}

func TestACaptureStandsForTheSegmentOfTheID(t *testing.T) {
	for _, c := range []struct{ rule, id, match, differ string }{
		{"p: td/ns/{ns}/sa/{sa} apps/{ns}/{sa}/** read", "td/ns/shop/sa/web", "apps/shop/web apps/shop/web/x", "apps/web/shop apps/shop apps/shop/db"},
		{"p: td/{a}/{b} {b}/x/{a}/{b} read", "td/1/2", "2/x/1/2", "1/x/2/1 2/x/1/1"},
		{"p: td/**/{last} {last} read", "td/a/b/c", "c", "a b"},
		{"p: td/{first}/**/{last} {first}/{last} read", "td/a/b/c", "a/c", "a/b c/a"},
		{"p: td/{first}/**/{last} {first}/{last} read", "td/a/c", "a/c", "a/a"},
		{"p: td/{first}/** **/{first}/** read", "td/a/b", "a a/x x/a x/y/a/z", "b x"},
		{"p: td/{a}/* {a}/** read", "td/1/2", "1 1/2", "2"},
	} {
		set := compile(t, c.rule)
		for text := range strings.FieldsSeq(c.match) {
			if !set.Allows(ids(c.id), policy.Read, path(text)).Allowed {
				t.Errorf("%s: %s may not read %s", c.rule, c.id, text)
			}
		}
		for text := range strings.FieldsSeq(c.differ) {
			if set.Allows(ids(c.id), policy.Read, path(text)).Allowed {
				t.Errorf("%s: %s may read %s", c.rule, c.id, text)
			}
		}
	}
}

func TestACapturedSegmentThatNoPathHasMatchesNothing(t *testing.T) {
	set := compile(t, "p: td/{ns} apps/{ns}/** super")
	for _, id := range []string{"td/..x", "td/" + strings.Repeat("n", 254)} {
		for _, text := range []string{"apps", "apps/x", "apps/ns", "apps/n/n"} {
			if set.Allows(ids(id), policy.Read, path(text)).Allowed {
				t.Errorf("%s may read %s", id, text)
			}
		}
	}
}

func TestNothingButALiteralPathReachesSys(t *testing.T) {
	set := compile(t,
		"a: td/{x}/** ** super", "b: td/{x}/** * super", "c: td/{x}/** */* super", "d: td/{x}/** {x}/** super",
		"e: td/{x}/** **/purge super", "f: td/{x}/** {x}/purge super", "g: td/{x}/** **/sys/** super", "h: td/{x}/** */cipher/* super",
	)
	for _, text := range []string{"sys", "sys/purge", "sys/cipher/x", "sys/policies", "sys/nope", "sys/a/b"} {
		for _, want := range all {
			for _, id := range []string{"td/sys", "td/sys/purge"} {
				if d := set.Allows(ids(id), want, path(text)); d.Allowed {
					t.Errorf("%s has %s on %s by %s", id, want, text, d.Policy)
				}
			}
		}
	}
	if d := set.Allows(ids("td/a"), policy.Read, path("x/sys/y")); !d.Allowed {
		t.Error("sys is reserved further down as well")
	}
	if set.Reaches(ids("td/sys"), path("sys")) || set.Reaches(ids("td/sys"), path("sys/cipher")) {
		t.Error("something below sys is listed")
	}
}

func TestAPowerIsGivenToPatternsOfIDs(t *testing.T) {
	set := compile(t, "ops: td/ops/* sys/purge super", "enc: td/web/** sys/cipher/tokens execute")
	for _, c := range []struct {
		id, path string
		want     policy.Permission
		allowed  bool
	}{
		{"td/ops/ann", "sys/purge", policy.Super, true},
		{"td/ops/ann", "sys/purge", policy.Read, false},
		{"td/ops/ann", "sys/policies", policy.Super, false},
		{"td/ops/ann", "db", policy.Super, false},
		{"td/web", "sys/purge", policy.Super, false},
		{"td/web", "sys/cipher/tokens", policy.Execute, true},
		{"td/web/x", "sys/cipher/tokens", policy.Execute, true},
		{"td/web", "sys/cipher/tokens", policy.Super, false},
		{"td/web", "sys/cipher/other", policy.Execute, false},
		{"td/web", "sys/cipher", policy.Execute, false},
	} {
		if got := set.Allows(ids(c.id), c.want, path(c.path)); got.Allowed != c.allowed {
			t.Errorf("%s %s %s: %+v", c.id, c.want, c.path, got)
		}
	}
}

func TestAnEmptySetDeniesEverything(t *testing.T) {
	empty, err := policy.Compile(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, set := range []*policy.Set{nil, {}, empty} {
		for _, want := range all {
			if d := set.Allows(ids("td/a"), want, path("db")); d != (policy.Decision{}) {
				t.Errorf("an empty set allows %s: %+v", want, d)
			}
		}
		if set.Reaches(ids("td/a"), path("")) || set.Matching(ids("td/a")[0]) != nil {
			t.Error("an empty set reaches something")
		}
		if e := set.Explain(ids("td/a")[0], policy.Read, path("db")); e.Decision.Allowed || len(e.Considered) != 0 {
			t.Errorf("an empty set explains %+v", e)
		}
	}
}

func TestWhatIsNoQuestionIsDenied(t *testing.T) {
	set := compile(t, "p: td/** ** super")
	long := "td" + strings.Repeat("/a", 33)
	for _, c := range []struct {
		ids  []spiffeid.ID
		want policy.Permission
		path secret.Path
	}{
		{nil, policy.Read, path("db")},
		{[]spiffeid.ID{{}}, policy.Read, path("db")},
		{ids("td"), policy.Read, path("db")},
		{ids(long), policy.Read, path("db")},
		{ids("td/a"), policy.Read, path("")},
		{ids("td/a"), 0, path("db")},
		{ids("td/a"), 6, path("db")},
		{ids("td/a"), 255, path("db")},
	} {
		if d := set.Allows(c.ids, c.want, c.path); d.Allowed {
			t.Errorf("Allows(%v, %d, %q) = %+v", c.ids, c.want, c.path, d)
		}
	}
	if set.Reaches(ids("td"), path("")) || set.Reaches(ids(long), path("")) || set.Reaches(nil, path("")) {
		t.Error("Reaches says yes to nobody")
	}
}

func TestAdministratorsHoldEverythingWhateverThePoliciesSay(t *testing.T) {
	admin := ids("td/ops/ann")
	set, err := policy.Compile(parse(t, "aaa: td/** ** super"), admin)
	if err != nil {
		t.Fatal(err)
	}
	want := policy.Decision{Allowed: true, Policy: policy.Administrators, ID: admin[0]}
	for _, p := range all {
		if got := set.Allows(ids("td/web", "td/ops/ann"), p, path("db/creds")); got != want {
			t.Errorf("%s on a secret: %+v", p, got)
		}
	}
	for _, name := range []string{"purge", "policies", "keys", "audit", "backup", "sessions", "status", "views", "workloads", "cipher/x"} {
		if got := set.Allows(admin, policy.Super, path("sys/"+name)); got != want {
			t.Errorf("super on sys/%s: %+v", name, got)
		}
	}
	if got := set.Allows(admin, policy.Execute, path("sys/cipher/x")); got != want {
		t.Errorf("execute on a key: %+v", got)
	}
	for _, text := range []string{"sys", "sys/nope", "sys/cipher", "sys/purge/x", ""} {
		if got := set.Allows(admin, policy.Super, path(text)); got.Allowed {
			t.Errorf("super on %q: %+v", text, got)
		}
	}
	for _, id := range []string{"td/ops", "td/ops/ann/x", "other/ops/ann", "td/ops/bob"} {
		if got := set.Allows(ids(id), policy.Super, path("sys/purge")); got.Allowed {
			t.Errorf("%s is taken for an administrator", id)
		}
	}
	if !set.Reaches(admin, path("")) || !set.Reaches(admin, path("any/where")) {
		t.Error("an administrator does not reach everything")
	}
}

func TestTheFirstPolicyByNameDecides(t *testing.T) {
	lines := []string{
		"m: td/a db/** read", "z: td/a db/creds read", "b: td/* ** read", "c: td/a db/creds read", "a: td/a db/creds write",
		"A: td/b db/creds read",
	}
	for range len(lines) {
		lines = append(lines[1:], lines[0])
		set := compile(t, lines...)
		got := set.Allows(ids("td/a"), policy.Read, path("db/creds"))
		if want := (policy.Decision{Allowed: true, Policy: "b", ID: ids("td/a")[0]}); got != want {
			t.Errorf("%v: %+v", lines, got)
		}
		got = set.Allows(ids("td/c", "td/a", "td/b"), policy.Read, path("db/creds"))
		if want := (policy.Decision{Allowed: true, Policy: "A", ID: ids("td/b")[0]}); got != want {
			t.Errorf("%v, three ids: %+v", lines, got)
		}
		got = set.Allows(ids("td/x/y", "td/c", "td/a"), policy.Read, path("db/creds"))
		if want := (policy.Decision{Allowed: true, Policy: "b", ID: ids("td/c")[0]}); got != want {
			t.Errorf("%v, two ids of one policy: %+v", lines, got)
		}
	}
}

func TestASetKeepsNothingOfWhatItWasMadeFrom(t *testing.T) {
	policies := parse(t, "p: td/a db read")
	set, err := policy.Compile(policies, nil)
	if err != nil {
		t.Fatal(err)
	}
	policies[0].Permissions[0] = policy.Super
	matching := set.Matching(ids("td/a")[0])
	if matching[0].Permissions[0] != policy.Read {
		t.Error("a change of the argument changed the set")
	}
	matching[0].Permissions[0] = policy.Super
	if set.Matching(ids("td/a")[0])[0].Permissions[0] != policy.Read {
		t.Error("a change of the result changed the set")
	}
}

func TestAFolderIsReachedWhenSomethingBelowMayBeListed(t *testing.T) {
	for _, c := range []struct{ rule, yes, no string }{ // "-" is the root
		{"td/ns/{ns} apps/{ns}/*/x read", "- apps apps/shop apps/shop/web apps/shop/web/x", "app apps/other apps/shop/web/y apps/shop/web/x/y db"},
		{"td/ns/{ns} db/** list", "- db db/a db/a/b", "x dbx"},
		{"td/ns/{ns} **/creds super", "- a a/b creds creds/a", ""},
		{"td/ns/{ns} * read", "- a", "a/b"},
		{"td/ns/{ns} db write", "", "- db"},
		{"td/ns/other db read", "", "- db"},
		{"td/ns/{ns} sys/purge super", "", "- sys sys/purge purge"},
	} {
		set := compile(t, "p: "+c.rule)
		for text := range strings.FieldsSeq(c.yes) {
			if !set.Reaches(ids("td/none", "td/ns/shop"), path(strings.Trim(text, "-"))) {
				t.Errorf("%s does not reach %q", c.rule, text)
			}
		}
		for text := range strings.FieldsSeq(c.no) {
			if set.Reaches(ids("td/none", "td/ns/shop"), path(strings.Trim(text, "-"))) {
				t.Errorf("%s reaches %q", c.rule, text)
			}
		}
	}
}
