// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
)

// Records yields the records of a log in order, without checking the chain;
// Verify does. A line that is no record is yielded as an error that names the
// segment and line, with a Record that has only these, and reading goes on. An
// error of the filesystem ends it. What a crash, or a writer at work, left half
// written at the end is not yielded.
func Records(dir string) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		places, err := listSegments(dir)
		if err != nil {
			yield(Record{}, err)
			return
		}
		for i, at := range places {
			limit, err := begins(dir, places[i+1:])
			if err != nil {
				yield(Record{}, err)
				return
			}
			if !yieldSegment(dir, at, limit, yield) {
				return
			}
		}
	}
}

// begins returns the first record of the first file that has the header its
// name asks for; 0 when there is none.
func begins(dir string, places []place) (uint64, error) {
	for _, at := range places {
		ok := false
		_, err := readLines(filepath.Join(dir, at.name), func(l line) bool {
			h, err := parseHeader(l.text)
			ok = err == nil && h.First == at.first
			return false
		})
		if err != nil {
			return 0, fmt.Errorf("reading the audit log: %w", err)
		}
		if ok {
			return at.first, nil
		}
	}
	return 0, nil
}

// yieldSegment stops before the record limit, if it is not 0: from there on the
// next segment counts.
func yieldSegment(dir string, at place, limit uint64, yield func(Record, error) bool) bool {
	wanted := true
	_, err := readLines(filepath.Join(dir, at.name), func(l line) bool {
		if l.number == 1 {
			if _, err := parseHeader(l.text); err != nil {
				wanted = yield(Record{Segment: at.name, Line: 1}, fmt.Errorf("audit log, %s, line 1: %w", at.name, err))
			}
			return wanted
		}
		r, err := parseRecord(l.text)
		if err == nil && limit > 0 && r.Index >= limit {
			return false
		}
		if err != nil {
			r, err = Record{}, fmt.Errorf("audit log, %s, line %d: %w", at.name, l.number, err)
		}
		r.Segment, r.Line = at.name, l.number
		wanted = yield(r, err)
		return wanted
	})
	if err != nil && wanted {
		wanted = false
		yield(Record{}, fmt.Errorf("reading the audit log: %w", err))
	}
	return wanted
}

// line is one whole line of a segment.
type line struct {
	number int
	text   []byte // without the newline; valid until the next one is read
}

// rest is what is in a segment after the last whole line, padding excluded.
type rest struct {
	offset int64 // where it begins; where the next line belongs
	bytes  int64 // 0 when there is nothing
	lines  int   // newlines in it
}

// readLines calls do with each line until it returns false. It ends before the
// first line that no completed write can have left: one without a newline, one
// with a zero byte, or one that is too long.
func readLines(path string, do func(line) bool) (rest, error) {
	f, err := os.Open(path)
	if err != nil {
		return rest{}, err
	}
	defer func() { _ = f.Close() }() // it was only read
	info, err := f.Stat()
	if err != nil {
		return rest{}, err
	}
	// What a writer adds meanwhile is for the next reader.
	size := info.Size()
	reader := bufio.NewReaderSize(io.LimitReader(f, size), int(min(size+1, maxLine)))
	var left rest
	for number := 1; ; number++ {
		text, err := reader.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return left, err
		}
		if err != nil || bytes.IndexByte(text, 0) >= 0 {
			return measure(left, text, reader)
		}
		left.offset += int64(len(text))
		if !do(line{number, text[:len(text)-1]}) {
			return left, nil
		}
	}
}

// measure counts what is left from text on, up to the last byte that is not zero.
func measure(left rest, text []byte, reader io.Reader) (rest, error) {
	position := int64(0)
	count := func(chunk []byte) {
		left.lines += bytes.Count(chunk, []byte{'\n'})
		if used := len(bytes.TrimRight(chunk, "\x00")); used > 0 {
			left.bytes = position + int64(used)
		}
		position += int64(len(chunk))
	}
	count(text)
	if len(text) == 0 {
		return left, nil // the end, and no padding
	}
	chunk := make([]byte, 64<<10)
	for {
		n, err := reader.Read(chunk)
		count(chunk[:n])
		if errors.Is(err, io.EOF) {
			return left, nil
		}
		if err != nil {
			return left, err
		}
	}
}
