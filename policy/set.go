// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/secret"
)

// MaxPolicies is how many a Set may have.
const MaxPolicies = 1_000_000

// maxProblems is how many errors of one Compile or ParseFile are told.
const maxProblems = 20

// Set is a compiled list of policies, with the administrators. It is immutable
// and safe for concurrent use. A nil or zero Set denies everything.
type Set struct {
	trie           trie
	rules          []rule // by name; the number of a rule is its index + 1
	administrators map[spiffeid.ID]struct{}
}

// Decision is the answer to one question.
type Decision struct {
	Allowed bool
	Policy  string      // that decided; Administrators for those; "" when denied
	ID      spiffeid.ID // that it allowed; zero when denied
}

// Compile makes a Set. Administrators are whole SPIFFE IDs, with a path; they
// hold Super on every secret and every power, whatever the policies say.
//
// The error is secret.ErrInvalid. It tells what is wrong with each policy, by
// name, up to 20 of them.
func Compile(policies []Policy, administrators []spiffeid.ID) (*Set, error) {
	if len(policies) > MaxPolicies {
		return nil, fmt.Errorf("%w policies: there are %d, at most %d are allowed", secret.ErrInvalid, len(policies), MaxPolicies)
	}
	s := &Set{rules: make([]rule, 0, len(policies)), administrators: make(map[spiffeid.ID]struct{}, len(administrators))}
	var found problems
	for _, id := range administrators {
		if id.Path() == "" {
			found.add(fmt.Errorf("%w administrator %q: a workload's SPIFFE ID has a path", secret.ErrInvalid, id))
		}
		s.administrators[id] = struct{}{}
	}
	names := make(map[string]struct{}, len(policies))
	for _, p := range policies {
		r, err := compile(p)
		if err != nil {
			found.add(err)
			continue
		}
		if _, taken := names[p.Name]; taken {
			found.add(fmt.Errorf("%w policy %q: there are two of that name", secret.ErrInvalid, p.Name))
		}
		names[p.Name] = struct{}{}
		s.rules = append(s.rules, r)
	}
	if err := found.err(); err != nil {
		return nil, err
	}
	slices.SortFunc(s.rules, func(a, b rule) int { return strings.Compare(a.policy.Name, b.policy.Name) })
	b := newBuilder()
	for i, r := range s.rules {
		b.add(r, index(i+1))
	}
	s.trie = b.trie
	return s, nil
}

// Allows decides whether one of ids, which were proven, has the permission want
// on path. The root has no permissions on it.
//
// When several rules allow it, the Decision names the first policy in the byte
// order of names, and the first of ids that it is for; administrators come
// before all policies. It does not allocate.
func (s *Set) Allows(ids []spiffeid.ID, want Permission, path secret.Path) Decision {
	if s == nil || !want.valid() || path.IsRoot() {
		return Decision{}
	}
	if id, found := s.administrator(ids); found && grantedToAdministrators(path).has(want) {
		return Decision{Allowed: true, Policy: Administrators, ID: id}
	}
	w := walk{trie: &s.trie, want: want, reserved: path.Reserved()}
	if !w.path.split(path.String()) {
		return Decision{}
	}
	decider, allowed := int32(0), spiffeid.ID{}
	for _, id := range ids {
		domain := s.trie.domains[id.TrustDomain()]
		if domain == 0 || !w.id.splitID(id) {
			continue
		}
		w.visit(domain, start, ofIDs)
		if w.found != decider { // it only ever goes down
			decider, allowed = w.found, id
		}
	}
	if decider == 0 {
		return Decision{}
	}
	return Decision{Allowed: true, Policy: s.rules[decider-1].policy.Name, ID: allowed}
}

// Reaches reports whether one of ids may have List on something at or below
// folder. A yes may be wrong; a no never is. Nothing below sys is ever listed.
// It does not allocate.
func (s *Set) Reaches(ids []spiffeid.ID, folder secret.Path) bool {
	if s == nil || folder.Reserved() {
		return false
	}
	if _, found := s.administrator(ids); found {
		return true
	}
	w := walk{trie: &s.trie}
	if !w.path.split(folder.String()) {
		return false
	}
	for _, id := range ids {
		domain := s.trie.domains[id.TrustDomain()]
		if domain == 0 || !w.id.splitID(id) {
			continue
		}
		if w.visit(domain, start, ofIDs); w.reaches {
			return true
		}
	}
	return false
}

// administrator returns the first administrator among ids.
func (s *Set) administrator(ids []spiffeid.ID) (spiffeid.ID, bool) {
	if len(s.administrators) == 0 {
		return spiffeid.ID{}, false
	}
	for _, id := range ids {
		if _, found := s.administrators[id]; found {
			return id, true
		}
	}
	return spiffeid.ID{}, false
}

// problems collects errors, not all when there are very many.
type problems struct {
	told []error
	more int
}

func (p *problems) add(err error) {
	if len(p.told) == maxProblems {
		p.more++
		return
	}
	p.told = append(p.told, err)
}

func (p *problems) err() error {
	if p.more > 0 {
		return fmt.Errorf("%w\nand %d more", errors.Join(p.told...), p.more)
	}
	return errors.Join(p.told...)
}
