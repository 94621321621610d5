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

func TestSegmentsThatWereRemovedOrCutAreFound(t *testing.T) {
	for name, test := range map[string]struct {
		edit func(t *testing.T, names []string)
		want Kind
	}{
		"first removed":  {func(t *testing.T, names []string) { remove(t, names[0]) }, Removed},
		"middle removed": {func(t *testing.T, names []string) { remove(t, names[1]) }, Removed},
		"last removed":   {func(t *testing.T, names []string) { remove(t, names[2]) }, Cut},
		"all removed":    {func(t *testing.T, names []string) { remove(t, names...) }, Cut},
		"middle cut":     {func(t *testing.T, names []string) { cut(t, names[1], 3) }, Removed},
		"last cut":       {func(t *testing.T, names []string) { cut(t, names[2], 1) }, Cut},
		"middle emptied": {func(t *testing.T, names []string) { replace(t, names[1], nil) }, Changed},
		"swapped": {func(t *testing.T, names []string) {
			a, b := content(t, names[0]), content(t, names[1])
			replace(t, names[0], b)
			replace(t, names[1], a)
		}, Changed},
		"under another name": {func(t *testing.T, names []string) {
			replace(t, filepath.Join(filepath.Dir(names[0]), segmentName(1000)), content(t, names[0]))
		}, Changed},
		"half a line": {func(t *testing.T, names []string) {
			data := content(t, names[1])
			replace(t, names[1], data[:len(data)-30])
		}, Changed},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			head := written(t, dir)
			test.edit(t, segments(t, dir))
			report, err := Verify(dir, testKey, &head)
			if !errors.Is(err, secret.ErrTampered) || report.Problems[0].Kind != test.want {
				t.Errorf("%v: %v", err, report.Problems)
			}

			// The agent goes on all the same, and says so.
			c := config(dir)
			c.Anchor = &head
			l := mustOpen(t, c)
			mustAppend(t, l, read(2000))
			newHead := mustSync(t, l)
			mustClose(t, l)
			c.Anchor = &newHead
			l = mustOpen(t, c)
			if found := l.Found(); len(found.Problems) > 0 && !found.Problems[0].Recorded {
				t.Errorf("found once more: %v", found.Problems)
			}
			mustAppend(t, l, read(2001))
			newHead = mustSync(t, l)
			report, err = Verify(dir, testKey, &newHead)
			if !errors.Is(err, secret.ErrTampered) || report.Head != newHead {
				t.Errorf("afterwards: %v, %+v", err, report)
			}
			got := tolerantRequests(dir)
			if n := len(got); n < 2 || got[n-2] != "request-2000" || got[n-1] != "request-2001" {
				t.Errorf("records %v", got)
			}
		})
	}
}

func tolerantRequests(dir string) []string {
	var all []string
	for r, err := range Records(dir) {
		if err == nil && r.Caller.Request != "" {
			all = append(all, r.Caller.Request)
		}
	}
	return all
}

func remove(t testing.TB, paths ...string) {
	t.Helper()
	for _, path := range paths {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
}

// cut removes whole lines from the end.
func cut(t testing.TB, path string, n int) {
	t.Helper()
	lines := slices.Collect(bytes.Lines(content(t, path)))
	replace(t, path, bytes.Join(lines[:len(lines)-n], nil))
}

func TestALogThatWasChangedGoesOnBehindARecordOfTheBreak(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	path := segments(t, dir)[2]
	replace(t, path, bytes.Replace(content(t, path), []byte("request-1000"), []byte("request-1009"), 1))
	evidence := content(t, path)

	c := config(dir)
	c.Anchor = &head
	var logged bytes.Buffer
	c.Logger = newTextLogger(&logged)
	l := mustOpen(t, c)
	found := l.Found()
	if len(found.Problems) != 1 || found.Problems[0].Kind != Changed || found.Problems[0].Recorded {
		t.Errorf("found %v", found.Problems)
	}
	if !strings.Contains(logged.String(), "not what was written") {
		t.Errorf("logged %q", logged.String())
	}
	mustAppend(t, l, read(1))
	newHead := mustSync(t, l)
	mustClose(t, l)
	if !bytes.Equal(content(t, path), evidence) {
		t.Error("the evidence was changed")
	}

	report, err := Verify(dir, testKey, &newHead)
	if !errors.Is(err, secret.ErrTampered) || len(report.Problems) != 2 || !report.Problems[0].Recorded || report.Problems[1].Kind != Broken {
		t.Fatalf("%v: %v", err, report.Problems)
	}
	if p := report.Problems[1]; p.Line != 2 || !strings.Contains(p.Detail, filepath.Base(path)) {
		t.Errorf("the break: %v", p)
	}

	// It is found once, whether the new anchor was kept or not.
	for _, anchor := range []*Head{&head, &newHead} {
		c := config(dir)
		c.Anchor = anchor
		was := len(segments(t, dir))
		mustClose(t, mustOpen(t, c))
		if is := len(segments(t, dir)); is != was {
			t.Errorf("%d segments were %d", is, was)
		}
	}
}

func TestATornLastLineIsCutOffAndRecorded(t *testing.T) {
	for name, tail := range map[string]string{
		"half a line":      `{"index":99,"time":"2026`,
		"zeros in between": `{"index":99,` + strings.Repeat("\x00", 500) + `"mac":"00"}` + "\n{\"index\":100",
		"one byte":         "{",
		"a long one":       strings.Repeat("x", 5000),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			head := written(t, dir)
			path := segments(t, dir)[2]
			replace(t, path, append(append(content(t, path), tail...), make([]byte, 1000)...))
			if report := mustVerify(t, dir, &head); report.Torn == nil || report.Torn.Bytes != int64(len(tail)) {
				t.Errorf("torn %+v", report.Torn)
			}
			c := config(dir)
			c.Anchor = &head
			l := mustOpen(t, c)
			mustAppend(t, l, read(1))
			newHead := mustSync(t, l)
			if report := mustVerify(t, dir, &newHead); report.Torn != nil {
				t.Errorf("torn %+v", report.Torn)
			}
			said := false
			for r, err := range Records(dir) {
				said = said || err == nil && r.Operation == OperationStart && strings.Contains(r.Reason, "half-written")
			}
			if !said {
				t.Error("the log does not say that its end was cut off")
			}
		})
	}
}

func TestATornLineThatWasDurableIsABreak(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	path := segments(t, dir)[2]
	data := content(t, path)
	replace(t, path, data[:len(data)-10])
	report, err := Verify(dir, testKey, &head)
	if !errors.Is(err, secret.ErrTampered) || report.Problems[0].First != head.Index {
		t.Errorf("%v: %v", err, report.Problems)
	}
	c := config(dir)
	c.Anchor = &head
	l := mustOpen(t, c)
	mustAppend(t, l, read(1))
	newHead := mustSync(t, l)
	report, err = Verify(dir, testKey, &newHead)
	if !errors.Is(err, secret.ErrTampered) || report.Problems[len(report.Problems)-1].Kind != Broken {
		t.Errorf("%v: %v", err, report.Problems)
	}
}

func TestPlantedSegmentsAreMovedAside(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	for _, first := range []uint64{5, head.Index + 3, maxFirst - 1} {
		replace(t, filepath.Join(dir, segmentName(first)), []byte("planted\n"))
	}
	if got, want := len(tolerantRequests(dir)), int(head.Index)-3; got != want {
		t.Errorf("%d records, want %d", got, want)
	}
	c := config(dir)
	c.Anchor = &head
	l := mustOpen(t, c)
	for n := range uint64(30) {
		replace(t, filepath.Join(dir, segmentName(l.Head().Index+1+n)), []byte("planted while running\n"))
	}
	for n := range 30 {
		mustAppend(t, l, read(3000+n))
	}
	newHead := mustSync(t, l)
	mustClose(t, l)
	moved, err := filepath.Glob(filepath.Join(dir, "*"+rejectedSuffix))
	if err != nil || len(moved) < 3 {
		t.Errorf("moved aside: %v, %v", moved, err)
	}
	report, _ := Verify(dir, testKey, &newHead)
	if report.Head != newHead {
		t.Errorf("report %+v, head %v", report, newHead)
	}
}

func TestForgedNumbersDoNotUseUpTheRealOnes(t *testing.T) {
	e := read(1)
	none := [32]byte{}
	c, err := newChain(nil)
	if err != nil {
		t.Fatal(err)
	}
	h := header{First: maxFirst - 1, Sealed: true}
	sealed := appendHeader(nil, &h)
	sealed = appendMAC(sealed, c.sum(true, &none, sealed))
	body := appendRecord(nil, maxFirst-1, true, &e)
	sealed = append(sealed, appendMAC(body, c.sum(true, &none, body))...)
	for name, edit := range map[string]func(dir, last string){
		"a record": func(_, last string) {
			replace(t, last, append(content(t, last), appendMAC(appendRecord(nil, maxFirst-1, false, &e), &none)...))
		},
		"a sealed segment": func(dir, _ string) { replace(t, filepath.Join(dir, segmentName(maxFirst-1)), sealed) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			head := written(t, dir)
			edit(dir, segments(t, dir)[2])
			for range 3 {
				c := config(dir)
				c.Anchor = &head
				l := mustOpen(t, c)
				mustAppend(t, l, read(1))
				head = mustSync(t, l)
				mustClose(t, l)
			}
			if n := len(segments(t, dir)); head.Index > 1000 || n != 4 {
				t.Errorf("record %d, %d segments", head.Index, n)
			}
			if report, _ := Verify(dir, testKey, &head); report.Head != head {
				t.Errorf("report %+v, head %v", report, head)
			}
		})
	}
}

func TestAHeaderThatIsGoneIsNotTakenForATornLine(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, config(dir))
	mustAppend(t, l, read(1))
	mustClose(t, l)
	path := segments(t, dir)[0]
	evidence := content(t, path)
	evidence[10] = 0
	replace(t, path, evidence)
	l = mustOpen(t, config(dir))
	if found := l.Found(); len(found.Problems) == 0 {
		t.Error("found nothing")
	}
	if !bytes.Equal(content(t, path), evidence) {
		t.Error("the evidence was changed")
	}
}

func TestALogOpenedWithAnotherKeyIsLeftAsItIs(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	c := config(dir)
	c.Key, c.Anchor = bytes.Repeat([]byte{8}, KeySize), &head
	l := mustOpen(t, c)
	mustClose(t, l)
	if n := len(segments(t, dir)); n != 4 {
		t.Errorf("%d segments", n)
	}
	remove(t, segments(t, dir)[3])
	mustVerify(t, dir, &head)
}
