// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"path/filepath"
	"slices"

	"github.com/keyhole-agent/keyhole/secret"
)

// Verify reads the whole log in dir and checks every MAC, the order, that
// nothing is missing, and that it still contains anchor, which may be nil. It
// may run while the log is written; the anchor must then be older than the call.
//
// The error is secret.ErrTampered when the report has problems; otherwise it
// says why the log could not be checked.
func Verify(dir string, key []byte, anchor *Head) (Report, error) {
	if key == nil {
		return Report{}, fmt.Errorf("verifying the audit log: %w key: there is none", secret.ErrInvalid)
	}
	c, err := newChain(key)
	if err != nil {
		return Report{}, fmt.Errorf("verifying the audit log: %w", err)
	}
	places, err := listSegments(dir)
	if err != nil {
		return Report{}, err
	}
	v := newVerifier(c, anchor)
	if err := v.run(dir, places); err != nil {
		return v.report, fmt.Errorf("verifying the audit log: %w", err)
	}
	return v.report, v.report.Err()
}

// maxGap bounds how far a line is believed that claims to be further on, so
// that a forged one cannot use up the numbers.
const maxGap = 1 << 32

// link says what is known about the MAC before the next record.
type link uint8

const (
	unknown link = iota // nothing: what was there is gone
	sure                // it is previous
	either              // it is previous or second: the record before was changed, or its MAC was
)

// verifier walks along the chain. After a problem it goes on with what the
// lines themselves claim, so that one change is reported once and where it is.
type verifier struct {
	chain    *chain // without a key, records that have one are not checked, only counted
	anchor   *Head
	lenient  bool            // a half-written end is no problem unless the anchor says so
	accepted func(r *Record) // called with each record that is as it was written; may be nil
	next     uint64          // the index that comes next
	previous [32]byte        // the MAC before it
	second   [32]byte
	link     link
	fits     bool // the header is in its place
	sealed   bool // it said that the segment began without a key
	first    bool // the next record is the segment's first

	report     Report
	unrecorded bool    // there are problems that no later record of the log names
	intact     int     // records that are as they were written
	foreign    []place // files that are not the log's: another header, and no record that fits
}

func newVerifier(c *chain, anchor *Head) *verifier {
	return &verifier{chain: c, anchor: anchor, next: 1, link: sure}
}

// run checks the given segments, which must be the last ones of the log.
func (v *verifier) run(dir string, places []place) error {
	genuine := make([]bool, len(places))
	for i, at := range places {
		var err error
		if genuine[i], err = v.genuine(dir, at); err != nil {
			return err
		}
	}
	for i, at := range places {
		limit := uint64(0)
		if next := slices.Index(genuine[i+1:], true); next >= 0 {
			limit = places[i+1+next].first
		}
		was := v.intact
		if err := v.segment(dir, at, limit); err != nil {
			return err
		}
		if !v.fits && v.intact == was {
			v.foreign = append(v.foreign, at)
		}
	}
	if v.anchor != nil && v.next <= v.anchor.Index {
		v.problem(Problem{Kind: Cut, First: v.next, Last: v.anchor.Index,
			Detail: fmt.Sprintf("the log ends before record %d, which it held when its head was kept", v.anchor.Index)})
	}
	return nil
}

// genuine reports whether a file begins with the header that its name asks for.
// One that does not is read all the same, but takes nothing's place.
func (v *verifier) genuine(dir string, at place) (bool, error) {
	ok := false
	_, err := readLines(filepath.Join(dir, at.name), func(l line) bool {
		h, err := parseHeader(l.text)
		ok = err == nil && h.First == at.first && v.authentic(&h, l.text)
		return false
	})
	return ok, err
}

func (v *verifier) authentic(h *header, text []byte) bool {
	mac := v.chain.sum(h.Sealed, &h.Previous, text[:len(text)-macSuffix])
	return mac == nil || *mac == h.MAC
}

// segment checks one file, up to the record limit if that is not 0.
func (v *verifier) segment(dir string, at place, limit uint64) error {
	v.report.Segments++
	v.fits = false
	lines, ended := 0, false
	left, err := readLines(filepath.Join(dir, at.name), func(l line) bool {
		lines = l.number
		if l.number == 1 {
			v.header(at, l.text)
			return true
		}
		ended = limit > 0 && v.next >= limit
		if !ended {
			v.record(at, l)
		}
		return !ended
	})
	if err != nil {
		return err
	}
	if lines == 0 && left.bytes == 0 {
		v.problem(Problem{Kind: Changed, Segment: at.name, Detail: "the file is empty"})
	}
	if left.bytes > 0 && !ended && (limit == 0 || v.next < limit) {
		// A segment begins durable, with its header and a record: what a crash
		// tears comes after these.
		v.unreadable(at, left, limit == 0 && lines > 1)
	}
	return nil
}

// unreadable judges the bytes after the last whole line.
func (v *verifier) unreadable(at place, left rest, tearable bool) {
	anchored := v.anchor != nil && v.next > v.anchor.Index
	if tearable && (left.lines == 0 || anchored || v.anchor == nil && v.lenient) {
		v.report.Torn = &Torn{Segment: at.name, Offset: left.offset, Bytes: left.bytes}
		return
	}
	v.problem(Problem{Kind: Changed, Segment: at.name, First: v.next, Last: v.next,
		Detail: fmt.Sprintf("the %d bytes from byte %d on are no records", left.bytes, left.offset)})
	v.next += uint64(max(left.lines, 1))
	v.link = unknown
}

func (v *verifier) problem(p Problem) {
	v.unrecorded = true
	if len(v.report.Problems) >= maxProblems {
		v.report.Omitted++
		return
	}
	v.report.Problems = append(v.report.Problems, p)
}

func (v *verifier) header(at place, text []byte) {
	v.first, v.fits, v.sealed = true, false, false
	wrong := func(format string, args ...any) {
		v.problem(Problem{Kind: Changed, Segment: at.name, Line: 1, Detail: fmt.Sprintf(format, args...)})
	}
	h, err := parseHeader(text)
	if err != nil {
		wrong("%v", err)
		return
	}
	if !v.authentic(&h, text) {
		wrong("the header's MAC does not match")
		return
	}
	v.sealed = h.Sealed
	switch {
	case h.First != at.first:
		wrong("the header is that of %s", segmentName(h.First))
		return
	case h.First > v.next+maxGap:
		wrong("it begins with record %d where %d comes next", h.First, v.next)
		return
	case h.First > v.next:
		v.problem(Problem{Kind: Removed, Segment: at.name, First: v.next, Last: h.First - 1, Detail: "the segment begins after them"})
	case v.link == unknown:
	case h.First < v.next:
		wrong("it begins with record %d where %d comes next", h.First, v.next)
	case h.Previous != v.previous && (v.link == sure || h.Previous != v.second):
		wrong("it does not continue the segment before it")
	}
	v.next, v.previous, v.link, v.fits = h.First, h.Previous, sure, true
}

func (v *verifier) record(at place, l line) {
	v.report.Records++
	first := v.first
	v.first = false
	r, err := parseRecord(l.text)
	if err == nil && r.Index > v.next+maxGap {
		err = fmt.Errorf("%w index: %d where %d comes next", secret.ErrInvalid, r.Index, v.next)
	}
	if err != nil {
		v.problem(Problem{Kind: Changed, Segment: at.name, Line: l.number, First: v.next, Last: v.next, Detail: err.Error()})
		v.next++
		v.link = unknown
		return
	}
	r.Segment, r.Line = at.name, l.number
	if r.Index < v.next {
		v.misplaced(&r)
		return
	}
	if r.Index > v.next {
		v.problem(Problem{Kind: Removed, Segment: at.name, Line: l.number, First: v.next, Last: r.Index - 1,
			Detail: fmt.Sprintf("record %d follows here", r.Index)})
		v.next, v.link = r.Index, unknown
	}
	if first && v.sealed && !r.Sealed {
		v.problem(Problem{Kind: Changed, Segment: at.name, Line: 1, Detail: "a header without a key before a record with one"})
	}
	v.follow(&r, l.text[:len(l.text)-macSuffix])
}

// follow checks the MAC of the record that comes next, and goes on behind it.
func (v *verifier) follow(r *Record, body []byte) {
	intact, mac := v.matches(r, body)
	if !intact && v.link != unknown {
		v.problem(Problem{Kind: Changed, Segment: r.Segment, Line: r.Line, First: r.Index, Last: r.Index, Detail: "its MAC does not match"})
	}
	switch {
	case intact, v.link == unknown:
		v.link = sure
	default:
		v.second, v.link = mac, either
	}
	v.previous = r.MAC
	v.next = r.Index + 1
	v.report.Head = Head{r.Index, r.MAC}
	if r.Sealed {
		v.report.Sealed++
	}
	if v.anchor != nil && r.Index == v.anchor.Index && r.MAC != v.anchor.MAC {
		v.problem(Problem{Kind: Changed, Segment: r.Segment, Line: r.Line, First: r.Index, Last: r.Index,
			Detail: "it is not the record that was the head when that was kept"})
		intact = false
	}
	if intact {
		v.accept(r)
	}
}

// matches reports whether the MAC of r is right, and what it should be.
func (v *verifier) matches(r *Record, body []byte) (bool, [32]byte) {
	if v.link == unknown {
		return false, [32]byte{}
	}
	mac := v.chain.sum(r.Sealed, &v.previous, body)
	if mac == nil || *mac == r.MAC {
		return true, r.MAC
	}
	expected := *mac
	if v.link == either && *v.chain.sum(r.Sealed, &v.second, body) == r.MAC {
		return true, r.MAC
	}
	return false, expected
}

func (v *verifier) accept(r *Record) {
	v.intact++
	if !r.Sealed {
		v.report.Sealed = 0
	}
	if r.Operation == OperationBreak {
		v.problem(Problem{Kind: Broken, Segment: r.Segment, Line: r.Line, First: r.Index, Last: r.Index, Detail: r.Reason})
		if !r.Sealed || v.chain.sealed() {
			for i := range v.report.Problems {
				v.report.Problems[i].Recorded = true
			}
			v.unrecorded = false
		}
	}
	if v.accepted != nil {
		v.accepted(r)
	}
}

// misplaced reports a record that comes after one with a higher index.
func (v *verifier) misplaced(r *Record) {
	p := Problem{Kind: Reordered, Segment: r.Segment, Line: r.Line, First: r.Index, Last: r.Index,
		Detail: fmt.Sprintf("it stands where record %d belongs", v.next)}
	for i, known := range v.report.Problems {
		if known.Kind == Removed && known.First == r.Index && known.Last == r.Index {
			v.report.Problems[i] = p // it was not removed after all
			return
		}
	}
	v.problem(p)
}
