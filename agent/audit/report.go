// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"fmt"
	"strings"

	"github.com/keyhole-agent/keyhole/secret"
)

// Kind is a way in which a log is not what was written.
type Kind string

// The kinds of problems.
const (
	Changed   Kind = "changed"   // a line is not what was written
	Removed   Kind = "removed"   // records are missing
	Reordered Kind = "reordered" // a record is not in its place
	Cut       Kind = "cut"       // the end is missing
	Broken    Kind = "broken"    // the log itself recorded that it was damaged
)

// Problem is one place where a log is not what was written.
type Problem struct {
	Kind        Kind
	Segment     string // the name of the file, "" when there is none left
	Line        int    // in it, from 1 up; 0 for all of it or its end
	First, Last uint64 // the records that this is about; 0 when it is about none
	Detail      string
	Recorded    bool // a later record of the log says that there was damage
}

// String describes the problem in one line.
func (p Problem) String() string {
	var b strings.Builder
	switch p.First {
	case 0:
		b.WriteString("no record ")
	case p.Last:
		fmt.Fprintf(&b, "record %d ", p.First)
	default:
		fmt.Fprintf(&b, "records %d to %d ", p.First, p.Last)
	}
	b.WriteString(string(p.Kind))
	if p.Segment != "" {
		b.WriteString(" in " + p.Segment)
	}
	if p.Line > 0 {
		fmt.Fprintf(&b, " line %d", p.Line)
	}
	return b.String() + ": " + p.Detail
}

// maxProblems bounds a report; a wrong key makes every record one.
const maxProblems = 100

// Report is what a check of the log found.
type Report struct {
	Segments int
	Records  uint64 // that were read, well or not
	Head     Head   // the last record
	Sealed   uint64 // records at the end that were written without a key and that no MAC covers yet
	Torn     *Torn  // what a crash, or a writer at work, left half written at the end; no problem
	Problems []Problem
	Omitted  int // problems beyond the first 100
}

// Torn is a half-written end: of records that nobody was promised.
type Torn struct {
	Segment string
	Offset  int64 // where the last whole line ends
	Bytes   int64
}

// Err returns nil, or secret.ErrTampered with the first problem.
func (r *Report) Err() error {
	if len(r.Problems) == 0 {
		return nil
	}
	more := ""
	if n := len(r.Problems) + r.Omitted - 1; n > 0 {
		more = fmt.Sprintf(" (and %d more)", n)
	}
	return fmt.Errorf("audit log: %s%s: %w", r.Problems[0], more, secret.ErrTampered)
}
