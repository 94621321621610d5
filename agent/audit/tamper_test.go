// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

// written makes a log of three segments and returns its head.
func written(t testing.TB, dir string) Head {
	t.Helper()
	l := mustOpen(t, config(dir))
	for n := 0; l.Stats().Segments < 3; n++ {
		mustAppend(t, l, read(n))
	}
	mustAppend(t, l, read(1000), read(1001))
	head := mustSync(t, l)
	mustClose(t, l)
	return head
}

func segments(t testing.TB, dir string) []string {
	t.Helper()
	places, err := listSegments(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, at := range places {
		names = append(names, filepath.Join(dir, at.name))
	}
	return names
}

func content(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func replace(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestEveryAlteredByteIsFound(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	c.SegmentBytes = 1000
	l := mustOpen(t, c)
	mustAppend(t, l, Event{Operation: "get"}, read(1), Event{Operation: "put"})
	head := mustSync(t, l)
	mustClose(t, l)
	if n := len(segments(t, dir)); n != 2 {
		t.Fatalf("%d segments", n)
	}
	tails := 0
	for _, path := range segments(t, dir) {
		original := content(t, path)
		for i := range original {
			for _, b := range []byte{original[i] ^ 1, 0, '\n'} {
				if b == original[i] {
					continue
				}
				altered := bytes.Clone(original)
				altered[i] = b
				replace(t, path, altered)
				report, err := Verify(dir, testKey, &head)
				if !errors.Is(err, secret.ErrTampered) {
					t.Fatalf("%s byte %d = %q: %v", path, i, b, err)
				}
				if p := report.Problems[0]; p.Segment != filepath.Base(path) && p.Kind != Cut {
					t.Fatalf("%s byte %d = %q: %v", path, i, b, p)
				}
				report, err = Verify(dir, testKey, nil)
				if err == nil && report.Torn == nil {
					t.Fatalf("without an anchor, %s byte %d = %q: found nothing", path, i, b)
				}
				if err == nil {
					tails++
				}
			}
		}
		replace(t, path, original)
	}
	if tails == 0 || tails > 1000 { // only the last line can pass for one that a crash tore
		t.Errorf("%d changes passed for a torn end", tails)
	}
	mustVerify(t, dir, &head)
}

// at returns where a record is, by its request.
func at(t testing.TB, dir, request string) Record {
	t.Helper()
	for _, r := range records(t, dir) {
		if r.Caller.Request == request {
			return r
		}
	}
	t.Fatalf("there is no %s", request)
	return Record{}
}

func TestVerifyTellsWhatWasDoneToWhichRecord(t *testing.T) {
	// Each edit gets the lines of the middle segment and the position of one
	// record in the middle of it.
	edits := map[string]struct {
		edit func(lines [][]byte, i int) [][]byte
		want []Kind
	}{
		"changed": {func(lines [][]byte, i int) [][]byte {
			lines[i] = bytes.Replace(lines[i], []byte(`"uid":1001`), []byte(`"uid":1002`), 1)
			return lines
		}, []Kind{Changed}},
		"removed": {func(lines [][]byte, i int) [][]byte { return slices.Delete(lines, i, i+1) }, []Kind{Removed}},
		"swapped": {func(lines [][]byte, i int) [][]byte {
			lines[i], lines[i+1] = lines[i+1], lines[i]
			return lines
		}, []Kind{Reordered}},
		"doubled": {func(lines [][]byte, i int) [][]byte {
			return slices.Insert(lines, i, lines[i])
		}, []Kind{Reordered}},
		"not a record": {func(lines [][]byte, i int) [][]byte {
			lines[i] = []byte("{}\n")
			return lines
		}, []Kind{Changed}},
	}
	for name, test := range edits {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			head := written(t, dir)
			path := segments(t, dir)[1]
			lines := slices.Collect(bytes.Lines(content(t, path)))
			i := len(lines) / 2
			r, err := parseRecord(bytes.TrimSuffix(lines[i], []byte("\n")))
			if err != nil {
				t.Fatal(err)
			}
			replace(t, path, bytes.Join(test.edit(lines, i), nil))
			report, err := Verify(dir, testKey, &head)
			if !errors.Is(err, secret.ErrTampered) {
				t.Fatalf("error %v", err)
			}
			var kinds []Kind
			for _, p := range report.Problems {
				kinds = append(kinds, p.Kind)
			}
			p := report.Problems[0]
			if !slices.Equal(kinds, test.want) || p.Segment != filepath.Base(path) || p.First != r.Index || p.Last != r.Index || p.Line < i {
				t.Errorf("record %d, line %d: %v", r.Index, i+1, report.Problems)
			}
			if text := err.Error(); !strings.Contains(text, p.Segment) || !strings.Contains(text, string(p.Kind)) {
				t.Errorf("error %q", text)
			}
		})
	}
}

func TestAForgedMACIsFoundOnceAndInItsPlace(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	r := at(t, dir, "request-2")
	path := filepath.Join(dir, r.Segment)
	lines := slices.Collect(bytes.Lines(content(t, path)))
	line := lines[r.Line-1]
	line[len(line)-5] = '0' ^ line[len(line)-5]&1
	replace(t, path, bytes.Join(lines, nil))
	report, err := Verify(dir, testKey, &head)
	if err == nil || len(report.Problems) != 1 || report.Problems[0].Line != r.Line {
		t.Errorf("%v", report.Problems)
	}
}

func TestASegmentOfAnotherLogUnderTheSameKeyIsFound(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	head := written(t, dir)
	l := mustOpen(t, config(other))
	for n := 0; l.Stats().Segments < 3; n++ {
		e := read(n)
		e.Path = "db/other" // as long as the first log's
		mustAppend(t, l, e)
	}
	mustClose(t, l)
	path, theirs := segments(t, dir)[1], segments(t, other)[1]
	if filepath.Base(path) != filepath.Base(theirs) {
		t.Fatalf("%s is not %s", path, theirs)
	}
	replace(t, path, content(t, theirs))
	report, err := Verify(dir, testKey, &head)
	if !errors.Is(err, secret.ErrTampered) || report.Problems[0].Segment != filepath.Base(path) {
		t.Errorf("%v: %v", err, report.Problems)
	}
}

func TestAHeaderWithoutAKeyBeforeARecordWithOneIsFound(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	path := segments(t, dir)[2]
	text, records, _ := bytes.Cut(content(t, path), []byte("\n"))
	h, err := parseHeader(text)
	if err != nil {
		t.Fatal(err)
	}
	c, err := newChain(nil)
	if err != nil {
		t.Fatal(err)
	}
	h.Sealed = true
	forged := appendHeader(nil, &h)
	forged = appendMAC(forged, c.sum(true, &h.Previous, forged))
	replace(t, path, append(forged, records...))
	if _, err := Verify(dir, testKey, &head); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("error %v", err)
	}
}

func TestAnotherKeyVerifiesNothing(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	report, err := Verify(dir, bytes.Repeat([]byte{8}, KeySize), &head)
	if !errors.Is(err, secret.ErrTampered) || len(report.Problems) == 0 || len(report.Problems) > maxProblems {
		t.Errorf("%v, %d problems", err, len(report.Problems))
	}
}

func TestAnotherLogUnderTheSameKeyIsNotThisOne(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	head := written(t, dir)
	l := mustOpen(t, config(other))
	for n := range int(head.Index) {
		mustAppend(t, l, read(n))
	}
	mustSync(t, l)
	if _, err := Verify(other, testKey, &head); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("error %v", err)
	}
}
