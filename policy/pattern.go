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

// Bounds of patterns. Those of paths are the bounds of secret.Path.
const (
	maxIDBytes     = 2048 // SPIFFE-ID section 2.3
	maxIDSegments  = 32   // of an ID's path; one with more matches no pattern
	maxCaptureName = 32   // bytes of a name in braces
)

const scheme = "spiffe://"

// kind is what a segment of a pattern matches.
type kind uint8

const (
	literal kind = iota // its text
	one                 // any one segment
	many                // any number of segments
	capture             // one segment; in a path, the one captured from the ID
)

// segment is one segment of a pattern.
type segment struct {
	text string // of a literal, or the name of a capture
	kind kind
	from int8 // of a capture in a path: the ID's segment, counted from the end when negative
}

func (s segment) String() string {
	switch s.kind {
	case one:
		return "*"
	case many:
		return "**"
	case capture:
		return "{" + s.text + "}"
	default:
		return s.text
	}
}

// pattern is what stands between the slashes, as it was written.
type pattern []segment

func (p pattern) String() string {
	texts := make([]string, len(p))
	for i, s := range p {
		texts[i] = s.String()
	}
	return strings.Join(texts, "/")
}

// literal reports whether the pattern has neither wildcards nor captures.
func (p pattern) literal() bool {
	return !slices.ContainsFunc(p, func(s segment) bool { return s.kind != literal })
}

func (p pattern) count(k kind) (n int) {
	for _, s := range p {
		if s.kind == k {
			n++
		}
	}
	return n
}

// normal returns the pattern with each run of ** as one, which matches the same.
func (p pattern) normal() pattern {
	return slices.CompactFunc(slices.Clone(p), func(a, b segment) bool { return a.kind == many && b.kind == many })
}

// parseSegments parses what stands between the slashes. check says what is
// wrong with a literal.
func parseSegments(text string, limit int, check func(string) error) (pattern, error) {
	parsed := make(pattern, 0, strings.Count(text, "/")+1)
	for part := range strings.SplitSeq(text, "/") {
		if len(parsed) == limit {
			return nil, fmt.Errorf("it has more than %d segments", limit)
		}
		s, err := parseSegment(part, check)
		if err != nil {
			return nil, fmt.Errorf("segment %d: %w", len(parsed)+1, err)
		}
		parsed = append(parsed, s)
	}
	return parsed, nil
}

func parseSegment(text string, check func(string) error) (segment, error) {
	switch {
	case text == "*":
		return segment{kind: one}, nil
	case text == "**":
		return segment{kind: many}, nil
	case strings.Contains(text, "*"):
		return segment{}, fmt.Errorf("%q: a wildcard is a whole segment: * for exactly one, ** for any number", text)
	case strings.ContainsAny(text, "{}"):
		name, open := strings.CutPrefix(text, "{")
		name, closed := strings.CutSuffix(name, "}")
		if !open || !closed || strings.ContainsAny(name, "{}") {
			return segment{}, fmt.Errorf("%q: a capture is a whole segment, such as {name}", text)
		}
		return segment{kind: capture, text: name}, checkCaptureName(name)
	}
	return segment{text: text}, check(text)
}

func checkCaptureName(name string) error {
	if name == "" || len(name) > maxCaptureName {
		return fmt.Errorf("the name in braces has %d bytes; 1 to %d are allowed", len(name), maxCaptureName)
	}
	for i, r := range name {
		letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r == '_'
		if !letter && (r < '0' || r > '9') {
			return fmt.Errorf("the name in braces has the character %q at byte %d; allowed are A-Z a-z 0-9 _", r, i)
		}
	}
	return nil
}

// parsePath parses a path pattern.
func parsePath(text string) (pattern, error) {
	if text == "" {
		return nil, errors.New("it is empty; ** matches every secret")
	}
	if len(text) > secret.MaxPathBytes {
		return nil, fmt.Errorf("it has %d bytes, at most %d are allowed", len(text), secret.MaxPathBytes)
	}
	return parseSegments(text, secret.MaxSegments, secret.CheckSegment)
}

// idPattern is a pattern of SPIFFE IDs.
type idPattern struct {
	domain spiffeid.TrustDomain
	path   pattern // never empty
}

func (p idPattern) String() string { return scheme + p.domain.Name() + "/" + p.path.String() }

// parseID parses a SPIFFE ID pattern.
func parseID(text string) (idPattern, error) {
	if len(text) > maxIDBytes {
		return idPattern{}, fmt.Errorf("it has %d bytes, at most %d are allowed", len(text), maxIDBytes)
	}
	rest, found := strings.CutPrefix(text, scheme)
	if !found {
		return idPattern{}, fmt.Errorf("it does not begin with %s", scheme)
	}
	name, rest, found := strings.Cut(rest, "/")
	if strings.ContainsAny(name, "*{}") {
		return idPattern{}, fmt.Errorf("the trust domain %q is not literal; wildcards and captures are for the path after it", name)
	}
	domain, err := spiffeid.TrustDomainFromString(name)
	if err != nil {
		return idPattern{}, err
	}
	if !found {
		return idPattern{}, fmt.Errorf("it has no path; %s%s/** matches every workload of the trust domain", scheme, name)
	}
	path, err := parseSegments(rest, maxIDSegments, spiffeid.ValidatePathSegment)
	if err != nil {
		return idPattern{}, err
	}
	return idPattern{domain: domain, path: path}, checkCaptures(path)
}

// checkCaptures refuses captures that would not stand for exactly one segment.
func checkCaptures(path pattern) error {
	for i, s := range path {
		if s.kind == capture && slices.Contains(path[:i], s) {
			return fmt.Errorf("the capture %s occurs twice", s)
		}
	}
	if path.count(capture) > 0 && path.normal().count(many) > 1 {
		return errors.New("with captures there may be ** only once, or it would be open which segments they are")
	}
	return nil
}

// resolve fills in which segment of the ID each capture of a path is. Both
// patterns are normal.
func resolve(id, path pattern) error {
	rest := slices.IndexFunc(id, func(s segment) bool { return s.kind == many })
	for i, s := range path {
		if s.kind != capture {
			continue
		}
		at := slices.IndexFunc(id, func(c segment) bool { return c.kind == capture && c.text == s.text })
		switch {
		case at < 0:
			return fmt.Errorf("segment %s: the spiffe_id captures no such name", s)
		case rest >= 0 && at > rest:
			at -= len(id) // what follows ** is at a fixed distance from the end
		}
		path[i].from = int8(at)
	}
	return nil
}
