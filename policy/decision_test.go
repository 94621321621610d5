// SPDX-License-Identifier: Apache-2.0

package policy_test

import (
	"fmt"
	"runtime"
	"testing"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// question is what a decision is asked.
type question struct {
	ids     []spiffeid.ID
	path    secret.Path
	allowed bool
}

// shape is a way to have many policies.
type shape struct {
	name     string
	policy   func(i int) (spiffeID, path string)
	question func(i int) (id, path string)
}

var shapes = []shape{
	{
		name: "ids=spread",
		policy: func(i int) (string, string) {
			return fmt.Sprintf("spiffe://example.org/ns/n%d/sa/s%d", i%1000, i/1000), fmt.Sprintf("apps/n%d/s%d/**", i%1000, i/1000)
		},
		question: func(i int) (string, string) {
			return fmt.Sprintf("spiffe://example.org/ns/n%d/sa/s%d", i%1000, i/1000), fmt.Sprintf("apps/n%d/s%d/creds", i%1000, i/1000)
		},
	},
	{
		name: "ids=one",
		policy: func(i int) (string, string) {
			return "spiffe://example.org/ns/{ns}/sa/*", fmt.Sprintf("apps/a%d/b%d/*", i%1000, i/1000)
		},
		question: func(i int) (string, string) {
			return "spiffe://example.org/ns/shop/sa/web", fmt.Sprintf("apps/a%d/b%d/creds", i%1000, i/1000)
		},
	},
}

// many returns a set of that many policies, and questions about them, a quarter
// of which it denies.
func (s shape) many(t testing.TB, rules int) (*policy.Set, []question) {
	t.Helper()
	policies := make([]policy.Policy, rules)
	for i := range policies {
		id, path := s.policy(i)
		policies[i] = policy.Policy{Name: fmt.Sprintf("p%d", i), SPIFFEID: id, Path: path, Permissions: []policy.Permission{policy.Read}}
	}
	set, err := policy.Compile(policies, ids("example.org/ops/ann"))
	if err != nil {
		t.Fatal(err)
	}
	questions := make([]question, 1<<12)
	for i := range questions {
		id, text := s.question(i * 7919 % rules)
		q := question{ids: []spiffeid.ID{spiffeid.RequireFromString(id)}, path: path(text), allowed: i%4 != 0}
		if !q.allowed {
			q.path = path(text + "/x")
			if s.name == "ids=spread" {
				q.path = path("db/" + text)
			}
		}
		questions[i] = q
	}
	return set, questions
}

func TestADecisionAllocatesNothing(t *testing.T) {
	for _, s := range shapes {
		set, questions := s.many(t, 1000)
		for _, q := range questions[:8] {
			if got := set.Allows(q.ids, policy.Read, q.path).Allowed; got != q.allowed {
				t.Errorf("%s: Allows(%v, read, %v) = %v", s.name, q.ids, q.path, got)
			}
			if n := testing.AllocsPerRun(100, func() { set.Allows(q.ids, policy.Read, q.path) }); n != 0 {
				t.Errorf("%s: a decision on %v allocates %v times", s.name, q.path, n)
			}
			if n := testing.AllocsPerRun(100, func() { set.Reaches(q.ids, q.path.Parent()) }); n != 0 {
				t.Errorf("%s: Reaches on %v allocates %v times", s.name, q.path.Parent(), n)
			}
		}
	}
	set := compile(t, "a: td/**/x/** **/a/**/b read", "b: td/{x}/**/{y} {y}/**/{x}/* read", "c: td/** sys/purge super")
	several := ids("td/x/x/a/b", "td/a/x/b/x/c", "other/a")
	for _, text := range []string{"a/b", "x/a/b/a/c/b", "b/q/td/x", "sys/purge", "sys/keys"} {
		for _, want := range all {
			if n := testing.AllocsPerRun(100, func() { set.Allows(several, want, path(text)) }); n != 0 {
				t.Errorf("a decision on %s allocates %v times", text, n)
			}
		}
	}
}

func BenchmarkDecision(b *testing.B) {
	for _, rules := range []int{10, 100_000} {
		for _, s := range shapes {
			b.Run(fmt.Sprintf("rules=%d/%s", rules, s.name), func(b *testing.B) {
				set, questions := s.many(b, rules)
				b.ReportAllocs()
				i := 0
				for b.Loop() {
					q := &questions[i%len(questions)]
					if set.Allows(q.ids, policy.Read, q.path).Allowed != q.allowed {
						b.Fatalf("Allows(%v, read, %v) is not %v", q.ids, q.path, q.allowed)
					}
					i++
				}
			})
		}
	}
}

// BenchmarkCompile also reports the memory that a set keeps, for each rule.
func BenchmarkCompile(b *testing.B) {
	const rules = 100_000
	for _, s := range shapes {
		b.Run(fmt.Sprintf("rules=%d/%s", rules, s.name), func(b *testing.B) {
			var before, after runtime.MemStats
			for b.Loop() {
				runtime.GC()
				runtime.ReadMemStats(&before)
				set, _ := s.many(b, rules)
				runtime.GC()
				runtime.ReadMemStats(&after)
				runtime.KeepAlive(set)
			}
			b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/rules, "bytes/rule")
		})
	}
}
