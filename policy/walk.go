// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"math/bits"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/secret"
)

// segments are those of an ID's path or of a secret's path. The array keeps
// them on the stack.
type segments struct {
	at    [max(maxIDSegments, secret.MaxSegments)]string
	count int
}

// split fills in the segments of text, and reports whether there is room.
func (s *segments) split(text string) bool {
	s.count = 0
	for text != "" {
		if s.count == len(s.at) {
			return false
		}
		s.at[s.count], text, _ = strings.Cut(text, "/")
		s.count++
	}
	return true
}

// splitID fills in the segments of an ID's path. It reports false for an ID
// that matches no pattern: without a path, or with too many segments.
func (s *segments) splitID(id spiffeid.ID) bool {
	path := id.Path()
	return path != "" && s.split(path[1:])
}

// referenced returns the segment that a capture in a path stands for.
func (s *segments) referenced(from int8) string {
	if from < 0 {
		return s.at[s.count+int(from)]
	}
	return s.at[from]
}

// positions is a set of places between segments: bit i is set when the pattern
// up to some node matches the first i segments. With sets, one visit of a node
// covers all the ways in which ** can be stretched.
type positions uint64

const start positions = 1

// part is one of the two parts of the trie.
type part bool

const (
	ofIDs   part = false
	ofPaths part = true
)

// walk is one pass over the trie, for one ID.
type walk struct {
	trie     *trie
	id, path segments
	reserved bool       // the path is below sys, where only literals reach
	want     Permission // what a rule must grant; none when asking whether a folder is reached
	found    int32      // the lowest number of such a rule
	reaches  bool       // some rule may grant List at or below the path
}

// visit takes the prefix at a node, which matches as far as reached tells, and
// goes on to all that the node leads to.
//
// It is one function for both parts, without a function value in it: called
// through one, w would escape to the heap.
func (w *walk) visit(at int32, reached positions, in part) {
	n := &w.trie.nodes[at]
	input := &w.id
	if in == ofPaths {
		input = &w.path
		if w.want == 0 && w.folder(n, reached) {
			return
		}
	}
	if n.end != 0 && reached.has(input.count) {
		w.end(n.end, in)
	}
	if n.many != 0 {
		w.visit(n.many, reached.stretched(input.count), in)
	}
	if reached = reached.before(input.count); reached == 0 {
		return
	}
	if n.one != 0 {
		w.visit(n.one, reached<<1, in)
	}
	for i := n.reference; i != 0; i = w.trie.references[i].next {
		edge := &w.trie.references[i]
		if next := input.equal(reached, w.id.referenced(edge.from)); next != 0 {
			w.visit(edge.child, next, in)
		}
	}
	for n.first != 0 && reached != 0 {
		label := input.at[bits.TrailingZeros64(uint64(reached))]
		next := input.equal(reached, label)
		if child := w.trie.literal(at, label); child != 0 {
			w.visit(child, next, in)
		}
		reached &^= next >> 1
	}
}

// folder notes whether a rule may grant List at or below the path. It reports
// true when there is no need to look further down.
func (w *walk) folder(n *node, reached positions) bool {
	if n.lists && reached.has(w.path.count) {
		w.reaches = true
	}
	return w.reaches || !n.lists
}

// end takes a pattern that matches as a whole.
func (w *walk) end(end int32, in part) {
	switch {
	case in == ofPaths:
		w.note(end)
	case w.reserved:
		w.power(end)
	default:
		w.visit(end, start, ofPaths)
	}
}

// power follows the path literally from a root of paths.
func (w *walk) power(at int32) {
	for _, s := range w.path.at[:w.path.count] {
		if at = w.trie.literal(at, s); at == 0 {
			return
		}
	}
	if end := w.trie.nodes[at].end; end != 0 {
		w.note(end)
	}
}

func (w *walk) note(end int32) {
	number := w.trie.grants[end][w.want]
	if number != 0 && (w.found == 0 || number < w.found) {
		w.found = number
	}
}

// has reports whether the first i segments are matched.
func (p positions) has(i int) bool { return p&(1<<i) != 0 }

// before returns the positions that are followed by a segment, of count.
func (p positions) before(count int) positions { return p & (1<<count - 1) }

// stretched returns the positions that ** leads to, of count segments: all from
// the first one on.
func (p positions) stretched(count int) positions {
	return (1<<(count+1) - 1) &^ (p&-p - 1)
}

// equal returns the positions after those of reached that text follows.
func (s *segments) equal(reached positions, text string) (next positions) {
	for rest := reached; rest != 0; rest &= rest - 1 {
		if i := bits.TrailingZeros64(uint64(rest)); s.at[i] == text {
			next |= 2 << i
		}
	}
	return next
}
