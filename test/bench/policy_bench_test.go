// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"fmt"
	"testing"
	"time"

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

// shape is a way to have many rules.
type shape struct {
	name     string
	rule     func(i int) (id, path string) // without the trust domain
	question func(i int) (id, path string) // that rule i answers
}

var shapes = []shape{
	{
		name: "each for another workload",
		rule: func(i int) (string, string) {
			return fmt.Sprintf("ns/n%d/sa/s%d", i%1000, i/1000), fmt.Sprintf("apps/n%d/s%d/**", i%1000, i/1000)
		},
		question: func(i int) (string, string) {
			return fmt.Sprintf("ns/n%d/sa/s%d", i%1000, i/1000), fmt.Sprintf("apps/n%d/s%d/creds", i%1000, i/1000)
		},
	},
	{
		name: "all for the same workloads",
		rule: func(i int) (string, string) {
			return "ns/{ns}/sa/*", fmt.Sprintf("apps/a%d/b%d/*", i%1000, i/1000)
		},
		question: func(i int) (string, string) {
			return "ns/shop/sa/web", fmt.Sprintf("apps/a%d/b%d/creds", i%1000, i/1000)
		},
	},
}

// compile makes a set of so many rules, and questions all over them, of which
// it denies a quarter.
func (s shape) compile(b *testing.B, rules int) (*policy.Set, []question) {
	b.Helper()
	policies := make([]policy.Policy, rules)
	for i := range policies {
		id, path := s.rule(i)
		policies[i] = policy.Policy{
			Name: fmt.Sprintf("p%d", i), SPIFFEID: "spiffe://example.org/" + id, Path: path,
			Permissions: []policy.Permission{policy.Read},
		}
	}
	set, err := policy.Compile(policies, nil)
	check(b, err)
	questions := make([]question, 1<<12)
	for i := range questions {
		id, path := s.question(i * 7919 % rules)
		q := question{ids: []spiffeid.ID{spiffeid.RequireFromString("spiffe://example.org/" + id)}, allowed: i%4 != 0}
		if !q.allowed {
			path = "other/" + path
		}
		q.path = secret.MustParsePath(path)
		questions[i] = q
	}
	return set, questions
}

// decide asks one question after another.
func decide(b *testing.B, set *policy.Set, questions []question) side {
	const many = 1 << 16
	next := 0
	return func() Done {
		begin := time.Now()
		for range many {
			q := &questions[next%len(questions)]
			next++
			if set.Allows(q.ids, policy.Read, q.path).Allowed != q.allowed {
				b.Fatalf("%v may read %v: not %v", q.ids, q.path, q.allowed)
			}
		}
		return Done{Count: many, Took: time.Since(begin)}
	}
}

// BenchmarkDecision compares a decision with 100,000 rules and one with ten.
func BenchmarkDecision(b *testing.B) {
	for _, s := range shapes {
		b.Run(s.name, func(b *testing.B) {
			large, largeQuestions := s.compile(b, 100_000)
			small, smallQuestions := s.compile(b, 10)
			next := 0
			allocations := testing.AllocsPerRun(1000, func() {
				q := largeQuestions[next%len(largeQuestions)]
				large.Allows(q.ids, policy.Read, q.path)
				next++
			})
			rates := rounds(b, decide(b, large, largeQuestions), decide(b, small, smallQuestions))
			ratio := rates[1].over(rates[0]) // of times
			b.ReportMetric(ratio.median(), "ratio")
			results.add("decision with 100,000 rules, "+s.name+" ÷ with 10", asRatio, ratio, atMost(5))
			results.add("  allocations", asCount, samples{allocations}, atMost(0))
			results.add("  with 100,000 rules", asNanos, rates[0].times())
			results.add("  with 10 rules", asNanos, rates[1].times())
		})
	}
}

// times turns rates into nanoseconds for each.
func (s samples) times() samples {
	times := make(samples, len(s))
	for i, rate := range s {
		times[i] = float64(time.Second) / rate
	}
	return times
}
