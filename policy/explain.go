// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/secret"
)

// MaxConsidered is how many policies an Explanation tells about.
const MaxConsidered = 20

// Explanation tells people why a Decision is what it is.
type Explanation struct {
	SPIFFEID   spiffeid.ID
	Permission Permission
	Path       secret.Path
	Decision   Decision
	Considered []Considered // at most MaxConsidered; the one that decided, then the nearest misses
	Omitted    int          // how many more there would be
}

// Considered tells why a policy allows something, or why it does not. Policy is
// "" when the reason lies in the question, and no policy could allow it.
type Considered struct {
	Policy string
	Reason string
}

// Explain tells which policies decide whether id has the permission want on
// path, and which fail to and why. Policies that match neither the ID nor the
// path are not mentioned.
//
// It looks at every policy on its own, without the index that Allows uses, so
// it takes time in proportion to their number. It names the patterns of others:
// it is for operators.
func (s *Set) Explain(id spiffeid.ID, want Permission, path secret.Path) Explanation {
	return s.explain(id, want, path, noMatch)
}

// ExplainSelf is Explain for the identity itself: it mentions only the policies
// whose spiffe_id matches.
func (s *Set) ExplainSelf(id spiffeid.ID, want Permission, path secret.Path) Explanation {
	return s.explain(id, want, path, pathGranted)
}

// Matching returns the policies whose spiffe_id matches id, by name. What the
// configuration gives to administrators is no policy.
func (s *Set) Matching(id spiffeid.ID) []Policy {
	var matching []Policy
	var parts segments
	if s == nil || !parts.splitID(id) {
		return nil
	}
	for _, r := range s.rules {
		if r.matchesID(id, &parts) {
			p := r.policy
			p.Permissions = slices.Clone(p.Permissions)
			matching = append(matching, p)
		}
	}
	return matching
}

// nearness is how much of a question a rule matches.
type nearness uint8

const (
	noMatch     nearness = iota
	pathOnly             // neither the ID nor the permission
	pathGranted          // not the ID
	idOnly               // neither the path nor the permission
	idGranted            // not the path
	notGranted           // not the permission
	allows
)

func (s *Set) explain(id spiffeid.ID, want Permission, path secret.Path, above nearness) Explanation {
	e := Explanation{SPIFFEID: id, Permission: want, Path: path, Decision: s.Allows([]spiffeid.ID{id}, want, path)}
	if e.Decision.Policy == Administrators {
		e.Considered = append(e.Considered, Considered{Administrators, "the configuration names this SPIFFE ID as an administrator"})
	}
	q := question{id: id, want: want, path: path}
	if reason := q.prepare(); reason != "" {
		e.Considered = append(e.Considered, Considered{Reason: reason})
		return e
	}
	if s == nil {
		return e
	}
	type candidate struct {
		rule *rule
		near nearness
	}
	var candidates []candidate
	for i := range s.rules {
		if near := q.nearness(&s.rules[i]); near > above {
			candidates = append(candidates, candidate{&s.rules[i], near})
		}
	}
	slices.SortStableFunc(candidates, func(a, b candidate) int { return int(b.near) - int(a.near) })
	for _, c := range candidates {
		if len(e.Considered) == MaxConsidered {
			e.Omitted++
			continue
		}
		e.Considered = append(e.Considered, Considered{c.rule.policy.Name, q.reason(c.rule, c.near)})
	}
	return e
}

// question is one question, cut into segments.
type question struct {
	id           spiffeid.ID
	want         Permission
	path         secret.Path
	inID, inPath segments
}

// prepare cuts the question into segments, or says why no policy can allow it.
func (q *question) prepare() string {
	text := q.path.String()
	switch {
	case !q.want.valid():
		return fmt.Sprintf("%s is not a permission", q.want)
	case q.id.Path() == "":
		return "the SPIFFE ID has no path; no workload has such an ID"
	case !q.inID.splitID(q.id):
		return fmt.Sprintf("the SPIFFE ID has more than %d segments; no policy matches such an ID", maxIDSegments)
	case q.path.IsRoot() || !q.inPath.split(text):
		return "the path is empty; permissions are on secrets and powers"
	case !q.path.Reserved():
		return ""
	}
	if _, err := grantedOnPower(text, []Permission{q.want}); err != nil {
		return err.Error()
	}
	return ""
}

func (q *question) nearness(r *rule) nearness {
	id := r.matchesID(q.id, &q.inID)
	path := r.matchesPath(q, id)
	granted := r.granted.has(q.want)
	switch {
	case id && path && granted:
		return allows
	case id && path:
		return notGranted
	case id && granted:
		return idGranted
	case id:
		return idOnly
	case path && granted:
		return pathGranted
	case path:
		return pathOnly
	}
	return noMatch
}

func (q *question) reason(r *rule, near nearness) string {
	lacks := ""
	if !r.granted.has(q.want) {
		lacks = fmt.Sprintf(", and it gives no %s but %s", q.want, r.granted)
	}
	switch near {
	case allows:
		return fmt.Sprintf("allows %s: spiffe_id %s and path %s match", q.want, r.policy.SPIFFEID, r.policy.Path)
	case notGranted:
		return fmt.Sprintf("matches, but gives no %s, only %s", q.want, r.granted)
	case idGranted, idOnly:
		return "spiffe_id matches, but " + q.pathReason(r) + lacks
	}
	if r.id.domain != q.id.TrustDomain() {
		return fmt.Sprintf("path matches, but spiffe_id %s is in another trust domain than %s", r.policy.SPIFFEID, q.id.TrustDomain()) + lacks
	}
	return fmt.Sprintf("path matches, but spiffe_id %s does not", r.policy.SPIFFEID) + lacks
}

// pathReason says why the path of a rule whose ID matches does not.
func (q *question) pathReason(r *rule) string {
	switch {
	case q.path.Reserved() && r.path[0].kind != literal:
		return fmt.Sprintf("path %s does not: no wildcard or capture reaches sys", r.policy.Path)
	case r.path.count(capture) > 0:
		return fmt.Sprintf("path %s does not: for this SPIFFE ID it means %s", r.policy.Path, r.expanded(&q.inID))
	}
	return fmt.Sprintf("path %s does not", r.policy.Path)
}

// expanded returns the path pattern with what was captured from an ID.
func (r *rule) expanded(id *segments) string {
	texts := make([]string, len(r.path))
	for i, s := range r.path {
		texts[i] = s.String()
		if s.kind == capture {
			texts[i] = id.referenced(s.from)
		}
	}
	return strings.Join(texts, "/")
}

func (r *rule) matchesID(id spiffeid.ID, parts *segments) bool {
	return r.id.domain == id.TrustDomain() && matches(r.id.path, parts, nil)
}

// matchesPath reports whether the path matches, with what was captured when the
// ID does too, and for any ID otherwise.
func (r *rule) matchesPath(q *question, idMatches bool) bool {
	switch {
	case q.path.Reserved() && r.path[0].kind != literal:
		return false
	case idMatches:
		return matches(r.path, &q.inPath, &q.inID)
	}
	return matches(r.path, &q.inPath, nil)
}

// matches reports whether a pattern matches the input. Captures refer to id;
// without one, they match any segment.
func matches(p pattern, input, id *segments) bool {
	reached := start
	for _, s := range p {
		before := reached.before(input.count)
		switch {
		case s.kind == many:
			reached = reached.stretched(input.count)
		case s.kind == literal:
			reached = input.equal(before, s.text)
		case s.kind == capture && id != nil:
			reached = input.equal(before, id.referenced(s.from))
		default:
			reached = before << 1
		}
		if reached == 0 {
			return false
		}
	}
	return reached.has(input.count)
}
