// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// trie holds all rules: from the trust domain over the segments of the ID to a
// node whose end is the root of the paths for such IDs, and from there over the
// segments of the path to a node whose end says what is granted.
//
// In the part for IDs a capture is an edge like *: which segment it is follows
// from its place in the pattern, so the part for paths refers to it by place.
// That is why a walk needs no memory of captures, and no second visit.
//
// Nodes are indices rather than pointers, and those of one rule are neighbours:
// a decision among many rules is bound by cache misses. Index 0 is no node.
type trie struct {
	nodes      []node
	branches   map[branch]int32
	references []reference // index 0 is none
	grants     []grant     // index 0 is none
	domains    map[spiffeid.TrustDomain]int32
}

// node is one prefix of patterns.
type node struct {
	label     string // of the first literal child
	first     int32  // the first literal child
	one       int32  // child for *, and for captures in an ID
	many      int32  // child for **
	reference int32  // list of children for what an ID captured
	end       int32  // for an ID: the root of its paths; for a path: its grant
	branching bool   // further literal children are in branches
	lists     bool   // in a path: some rule that ends here or below grants List
}

// branch names a literal child other than the first.
type branch struct {
	parent int32
	label  string
}

// reference is an edge in the part for paths: the segment of the ID at place
// from, counted from its end when negative.
type reference struct {
	from  int8
	child int32
	next  int32 // of the same node
}

// grant has for each permission the first rule, in the order of names, that
// grants it: its number from 1, or 0.
type grant [Super + 1]int32

// builder makes a trie.
type builder struct {
	trie
	labels map[string]string // one copy of each label: shared ones stay in the cache
}

func newBuilder() *builder {
	return &builder{
		trie: trie{
			nodes:      make([]node, 1),
			branches:   map[branch]int32{},
			references: make([]reference, 1),
			grants:     make([]grant, 1),
			domains:    map[spiffeid.TrustDomain]int32{},
		},
		labels: map[string]string{},
	}
}

// add inserts a rule. Rules are added in the order of their numbers.
func (b *builder) add(r rule, number int32) {
	at := b.domains[r.id.domain]
	if at == 0 {
		at = b.node()
		b.domains[r.id.domain] = at
	}
	for _, s := range r.id.path {
		at = b.child(at, s)
	}
	if b.nodes[at].end == 0 {
		root := b.node()
		b.nodes[at].end = root
	}
	at = b.nodes[at].end
	lists := r.granted.has(List)
	for _, s := range r.path {
		b.nodes[at].lists = b.nodes[at].lists || lists
		if s.kind == capture {
			at = b.referenced(at, s.from)
		} else {
			at = b.child(at, s)
		}
	}
	b.nodes[at].lists = b.nodes[at].lists || lists
	b.grant(at, r.granted, number)
}

func (b *builder) grant(at int32, granted permissions, number int32) {
	if b.nodes[at].end == 0 {
		b.nodes[at].end = index(len(b.grants))
		b.grants = append(b.grants, grant{})
	}
	g := &b.grants[b.nodes[at].end]
	for p := List; p <= Super; p++ {
		if granted.has(p) && g[p] == 0 {
			g[p] = number
		}
	}
}

// child returns the child of a node for a segment, and makes it when needed.
func (b *builder) child(at int32, s segment) int32 {
	n := b.nodes[at]
	switch s.kind {
	case one, capture:
		if n.one == 0 {
			n.one = b.node()
			b.nodes[at] = n
		}
		return n.one
	case many:
		if n.many == 0 {
			n.many = b.node()
			b.nodes[at] = n
		}
		return n.many
	default:
		return b.literal(at, s.text)
	}
}

func (b *builder) literal(at int32, label string) int32 {
	if child := b.trie.literal(at, label); child != 0 {
		return child
	}
	if shared, found := b.labels[label]; found {
		label = shared
	} else {
		b.labels[label] = label
	}
	child := b.node()
	if n := &b.nodes[at]; n.first == 0 {
		n.label, n.first = label, child
	} else {
		n.branching = true
		b.branches[branch{at, label}] = child
	}
	return child
}

func (b *builder) referenced(at int32, from int8) int32 {
	for i := b.nodes[at].reference; i != 0; i = b.references[i].next {
		if b.references[i].from == from {
			return b.references[i].child
		}
	}
	child := b.node()
	b.references = append(b.references, reference{from: from, child: child, next: b.nodes[at].reference})
	b.nodes[at].reference = index(len(b.references) - 1)
	return child
}

func (b *builder) node() int32 {
	b.nodes = append(b.nodes, node{})
	return index(len(b.nodes) - 1)
}

// index narrows a position in one of the trie's slices. MaxPolicies times the
// segments that a rule can have is far below 2^31.
func index(i int) int32 { return int32(i) }

// literal returns the child of a node for a literal segment, or 0.
func (t *trie) literal(at int32, label string) int32 {
	n := &t.nodes[at]
	if n.first != 0 && n.label == label {
		return n.first
	}
	if n.branching {
		return t.branches[branch{at, label}]
	}
	return 0
}
