// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"pgregory.net/rapid"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// naive decides as the documentation reads: it tries one policy after the other
// and every way in which it could match. It shares no code with the Set.
type naive struct {
	policies       []policy.Policy
	administrators []spiffeid.ID
}

func (n naive) allows(ids []spiffeid.ID, want policy.Permission, path secret.Path) policy.Decision {
	power := path.Reserved()
	for _, id := range ids {
		// All powers that these tests ask about exist.
		if slices.Contains(n.administrators, id) && (!power || want == policy.Super) {
			return policy.Decision{Allowed: true, Policy: policy.Administrators, ID: id}
		}
	}
	sorted := slices.SortedFunc(slices.Values(n.policies), func(a, b policy.Policy) int { return strings.Compare(a.Name, b.Name) })
	for _, p := range sorted {
		if !gives(p.Permissions, want, power) || power && p.Path != path.String() {
			continue
		}
		for _, id := range ids {
			if tries(strings.Split(p.SPIFFEID, "/"), strings.Split(id.String(), "/"), nil, func(captured map[string]string) bool {
				return tries(strings.Split(p.Path, "/"), strings.Split(path.String(), "/"), captured, func(map[string]string) bool { return true })
			}) {
				return policy.Decision{Allowed: true, Policy: p.Name, ID: id}
			}
		}
	}
	return policy.Decision{}
}

func gives(listed []policy.Permission, want policy.Permission, power bool) bool {
	return slices.ContainsFunc(listed, func(p policy.Permission) bool {
		return p == want || !power && (p == policy.Super || p == policy.Read && want == policy.List)
	})
}

// tries calls then for each way in which the pattern matches the input, until
// one is true. Given no captured segments, it captures.
func tries(pattern, input []string, captured map[string]string, then func(map[string]string) bool) bool {
	return try(pattern, input, captured == nil, captured, then)
}

func try(pattern, input []string, capturing bool, captured map[string]string, then func(map[string]string) bool) bool {
	if len(pattern) == 0 {
		return len(input) == 0 && then(captured)
	}
	if pattern[0] == "**" && try(pattern[1:], input, capturing, captured, then) {
		return true
	}
	if len(input) == 0 {
		return false
	}
	switch first := pattern[0]; {
	case first == "**":
		return try(pattern, input[1:], capturing, captured, then)
	case first[:min(1, len(first))] == "{" && capturing:
		with := map[string]string{first: input[0]}
		maps.Copy(with, captured)
		return try(pattern[1:], input[1:], capturing, with, then)
	case first == "*" || first == input[0] || captured != nil && captured[first] == input[0]:
		return try(pattern[1:], input[1:], capturing, captured, then)
	}
	return false
}

// Few labels, and deep nesting, make policies meet each other in the trie.
var (
	labels     = rapid.SampledFrom([]string{"a", "b", "c", "sys"})
	domains    = rapid.SampledFrom([]string{"td", "td", "td", "td", "other"})
	idSegment  = rapid.SampledFrom([]string{"a", "b", "sys", "*", "**", "**", "{x}", "{y}"})
	segment    = rapid.SampledFrom([]string{"a", "b", "c", "sys", "*", "**", "**", "{x}", "{y}"})
	permission = rapid.SampledFrom(all)
	power      = rapid.SampledFrom([]string{"sys/purge", "sys/policies"})
)

func drawID(t *rapid.T) spiffeid.ID {
	path := rapid.SliceOfN(labels, 1, 6).Draw(t, "id")
	return spiffeid.RequireFromString("spiffe://" + domains.Draw(t, "domain") + "/" + strings.Join(path, "/"))
}

func drawPath(t *rapid.T) secret.Path {
	text := strings.Join(rapid.SliceOfN(labels, 1, 7).Draw(t, "path"), "/")
	if text == "sys" || strings.HasPrefix(text, "sys/") {
		text = power.Draw(t, "power")
	}
	return secret.MustParsePath(text)
}

// drawPolicies draws some, and keeps those that compile.
func drawPolicies(t *rapid.T, limit int) []policy.Policy {
	var policies []policy.Policy
	for i := range rapid.IntRange(limit/2, limit).Draw(t, "policies") {
		p := policy.Policy{
			Name:        fmt.Sprintf("%d", i*7%limit),
			SPIFFEID:    "spiffe://" + domains.Draw(t, "domain") + "/" + strings.Join(rapid.SliceOfN(idSegment, 1, 5).Draw(t, "spiffe_id"), "/"),
			Path:        strings.Join(rapid.SliceOfN(segment, 1, 6).Draw(t, "path"), "/"),
			Permissions: rapid.SliceOfNDistinct(permission, 1, 3, rapid.ID).Draw(t, "permissions"),
		}
		if rapid.IntRange(0, 9).Draw(t, "is power") == 0 {
			p.Path, p.Permissions = power.Draw(t, "power"), []policy.Permission{policy.Super}
		}
		if _, err := policy.Compile([]policy.Policy{p}, nil); err == nil {
			policies = append(policies, p)
		}
	}
	return policies
}

func TestTheTrieDecidesAsTheNaiveMatcher(t *testing.T) {
	var allowed, denied int
	rapid.Check(t, func(t *rapid.T) {
		n := naive{policies: drawPolicies(t, 30)}
		if rapid.Bool().Draw(t, "with administrator") {
			n.administrators = []spiffeid.ID{drawID(t)}
		}
		set, err := policy.Compile(n.policies, n.administrators)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			asked := rapid.SliceOfN(rapid.Custom(drawID), 1, 3).Draw(t, "ids")
			want, path := permission.Draw(t, "want"), drawPath(t)
			expected := n.allows(asked, want, path)
			if got := set.Allows(asked, want, path); got != expected {
				t.Fatalf("policies %+v\nAllows(%v, %v, %v) = %+v, not %+v", n.policies, asked, want, path, got, expected)
			}
			if expected.Allowed {
				allowed++
			} else {
				denied++
			}
			explained := set.Explain(asked[0], want, path)
			if single := n.allows(asked[:1], want, path); explained.Decision != single ||
				single.Allowed && explained.Considered[0].Policy != single.Policy {
				t.Fatalf("policies %+v\nExplain(%v, %v, %v) = %+v, not %+v", n.policies, asked[0], want, path, explained, single)
			}
		}
	})
	if !testing.Short() && (allowed < 100 || denied < 100) {
		t.Errorf("%d allowed and %d denied: the comparison says little", allowed, denied)
	}
}

func TestNoFolderAboveWhatMayBeListedIsMissed(t *testing.T) {
	var reached, missed int
	rapid.Check(t, func(t *rapid.T) {
		n := naive{policies: drawPolicies(t, 4)}
		set, err := policy.Compile(n.policies, nil)
		if err != nil {
			t.Fatal(err)
		}
		for range 30 {
			asked, path := []spiffeid.ID{drawID(t)}, drawPath(t)
			listed := n.allows(asked, policy.List, path).Allowed
			for folder := path; ; folder = folder.Parent() {
				if reaches := set.Reaches(asked, folder); !reaches && listed {
					t.Fatalf("policies %+v\n%v may list %v, but Reaches(%q) says no", n.policies, asked, path, folder)
				} else if reaches {
					reached++
				} else {
					missed++
				}
				if folder.IsRoot() {
					break
				}
			}
		}
	})
	if !testing.Short() && (reached < 100 || missed < 100) {
		t.Errorf("%d folders reached and %d not: the comparison says little", reached, missed)
	}
}

// TestManyWildcardsCostLittle would not end, were each way to stretch the
// wildcards tried on its own.
func TestManyWildcardsCostLittle(t *testing.T) {
	deep := strings.TrimSuffix(strings.Repeat("a/", 32), "/")
	set := compile(t,
		"p: td/"+strings.TrimSuffix(strings.Repeat("**/a/", 15), "/")+"/z "+strings.TrimSuffix(strings.Repeat("**/a/", 15), "/")+"/z read",
		"q: td/"+strings.TrimSuffix(strings.Repeat("**/a/", 16), "/")+" "+strings.TrimSuffix(strings.Repeat("**/*/", 15), "/")+"/z read",
		"r: td/{x}/**/{y} "+strings.TrimSuffix(strings.Repeat("**/{x}/", 15), "/")+"/z read",
	)
	if d := set.Allows(ids("td/"+deep), policy.Read, path(deep)); d.Allowed {
		t.Errorf("%+v", d)
	}
	if e := set.Explain(ids("td/" + deep)[0], policy.Read, path(deep)); e.Decision.Allowed || len(e.Considered) != 2 {
		t.Errorf("%+v", e)
	}
	if d := set.Allows(ids("td/"+deep), policy.Read, path(deep[:len(deep)-1]+"z")); d.Policy != "q" {
		t.Errorf("%+v", d)
	}
}
