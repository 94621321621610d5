// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/policy"
)

func names(e policy.Explanation) (names []string) {
	for _, c := range e.Considered {
		names = append(names, c.Policy)
	}
	return names
}

func TestADenialIsExplainedByTheNearestMisses(t *testing.T) {
	set := compile(t,
		"a-stranger: td/uid/7 x/** super",
		"b-path-only: td/uid/7 db/** list",
		"c-path-granted: other/uid/1 db/** read",
		"d-id-only: td/uid/1 x/** list",
		"e-id-granted: td/uid/{u} apps/{u}/** read",
		"f-not-granted: td/uid/* db/* write,list",
	)
	id := ids("td/uid/1")[0]
	e := set.Explain(id, policy.Read, path("db/creds"))
	if e.SPIFFEID != id || e.Permission != policy.Read || e.Path != path("db/creds") || e.Decision.Allowed {
		t.Errorf("%+v", e)
	}
	want := []policy.Considered{
		{Policy: "f-not-granted", Reason: "matches, but gives no read, only list, write"},
		{Policy: "e-id-granted", Reason: "spiffe_id matches, but path apps/{u}/** does not: for this SPIFFE ID it means apps/1/**"},
		{Policy: "d-id-only", Reason: "spiffe_id matches, but path x/** does not, and it gives no read but list"},
		{Policy: "c-path-granted", Reason: "path matches, but spiffe_id spiffe://other/uid/1 is in another trust domain than td"},
		{Policy: "b-path-only", Reason: "path matches, but spiffe_id spiffe://td/uid/7 does not, and it gives no read but list"},
	}
	if !slices.Equal(e.Considered, want) {
		t.Errorf("considered:\n%+v\nwant:\n%+v", e.Considered, want)
	}
	if own := set.ExplainSelf(id, policy.Read, path("db/creds")); !slices.Equal(own.Considered, want[:3]) {
		t.Errorf("to itself: %+v", own.Considered)
	}
}

func TestAnExplanationBeginsWithWhatDecided(t *testing.T) {
	set := compile(t, "c: td/a db read", "b: td/* ** super", "a: td/a db write")
	e := set.Explain(ids("td/a")[0], policy.Read, path("db"))
	if e.Decision.Policy != "b" || !slices.Equal(names(e), []string{"b", "c", "a"}) {
		t.Errorf("%+v", e)
	}
	if want := "allows read: spiffe_id spiffe://td/* and path ** match"; e.Considered[0].Reason != want {
		t.Errorf("reason %q, not %q", e.Considered[0].Reason, want)
	}
}

func TestAnExplanationSaysThatNoWildcardReachesSys(t *testing.T) {
	set := compile(t, "p: td/{a} ** super", "q: td/{a} {a}/purge super")
	e := set.Explain(ids("td/sys")[0], policy.Super, path("sys/purge"))
	if e.Decision.Allowed || len(e.Considered) != 2 {
		t.Fatalf("%+v", e)
	}
	for _, c := range e.Considered {
		if !strings.HasSuffix(c.Reason, "does not: no wildcard or capture reaches sys") {
			t.Errorf("%+v", c)
		}
	}
}

func TestAnExplanationNamesWhatIsWrongWithTheQuestion(t *testing.T) {
	set := compile(t, "p: td/** ** super")
	for _, c := range []struct {
		id, path string
		want     policy.Permission
		reason   string
	}{
		{"td", "db", policy.Read, "has no path"},
		{"td" + strings.Repeat("/a", 33), "db", policy.Read, "more than 32 segments"},
		{"td/a", "", policy.Read, "the path is empty"},
		{"td/a", "db", 0, "permission 0 is not a permission"},
		{"td/a", "sys/nope", policy.Super, "no such power"},
		{"td/a", "sys/purge", policy.Read, "no secrets to read"},
	} {
		e := set.Explain(ids(c.id)[0], c.want, path(c.path))
		if e.Decision.Allowed || len(e.Considered) != 1 || e.Considered[0].Policy != "" || !strings.Contains(e.Considered[0].Reason, c.reason) {
			t.Errorf("Explain(%s, %d, %q) = %+v", c.id, c.want, c.path, e)
		}
	}
}

func TestAnExplanationNamesTheAdministrators(t *testing.T) {
	admin := ids("td/ops/ann")
	set, err := policy.Compile(parse(t, "p: td/ops/* db read"), admin)
	if err != nil {
		t.Fatal(err)
	}
	e := set.Explain(admin[0], policy.Read, path("db"))
	if e.Decision.Policy != policy.Administrators || !slices.Equal(names(e), []string{policy.Administrators, "p"}) {
		t.Errorf("%+v", e)
	}
	e = set.Explain(admin[0], policy.Super, path("sys/purge"))
	if e.Decision.Policy != policy.Administrators || e.Considered[0].Policy != policy.Administrators {
		t.Errorf("%+v", e)
	}
}

func TestAnExplanationIsBounded(t *testing.T) {
	var lines []string
	for i := range 100 {
		lines = append(lines, fmt.Sprintf("n%02d: td/a x%d read", i, i))
	}
	e := compile(t, append(lines, "z: td/a db list")...).Explain(ids("td/a")[0], policy.Read, path("db"))
	if len(e.Considered) != policy.MaxConsidered || e.Omitted != 101-policy.MaxConsidered || e.Considered[0].Policy != "z" || e.Considered[1].Policy != "n00" {
		t.Errorf("%d considered, %d omitted: %+v", len(e.Considered), e.Omitted, e.Considered)
	}
}

func TestMatchingListsThePoliciesOfAnID(t *testing.T) {
	set := compile(t, "c: td/** a read", "a: td/uid/* b read", "b: td/uid/2 c read", "d: other/** a read")
	var got []string
	for _, p := range set.Matching(ids("td/uid/1")[0]) {
		got = append(got, p.Name)
	}
	if !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("Matching = %v", got)
	}
	if got := set.Matching(ids("td")[0]); got != nil {
		t.Errorf("Matching of an ID without a path = %v", got)
	}
}
