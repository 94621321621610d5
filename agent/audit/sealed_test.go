// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"errors"
	"io"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func newTextLogger(w io.Writer) *slog.Logger { return slog.New(slog.NewTextHandler(w, nil)) }

func sealedConfig(dir string) Config {
	c := config(dir)
	c.Key = nil
	return c
}

func TestSealedRecordsAreAuthenticatedByTheFirstOneAfterTheUnlock(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	l := mustOpen(t, sealedConfig(dir))
	for n := range 20 {
		mustAppend(t, l, read(2000+n))
	}
	sealedHead := mustSync(t, l)
	if report := mustVerify(t, dir, &sealedHead); report.Sealed != sealedHead.Index-head.Index {
		t.Errorf("%d sealed records of %d", report.Sealed, sealedHead.Index-head.Index)
	}
	if err := l.Unlock(testKey, &head); err != nil {
		t.Fatal(err)
	}
	mustAppend(t, l, read(3000))
	newHead := mustSync(t, l)
	report := mustVerify(t, dir, &newHead)
	if report.Sealed != 0 {
		t.Errorf("%d sealed records", report.Sealed)
	}
	if err := l.Unlock(testKey, nil); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("unlocking again: %v", err)
	}
	if !at(t, dir, "request-2005").Sealed || at(t, dir, "request-3000").Sealed {
		t.Error("records do not say whether they were written sealed")
	}

	path := segments(t, dir)
	for _, name := range path {
		data := content(t, name)
		replace(t, name, bytes.ReplaceAll(data, []byte("request-2005"), []byte("request-2006")))
	}
	if _, err := Verify(dir, testKey, &newHead); !errors.Is(err, secret.ErrTampered) {
		t.Errorf("a changed sealed record: %v", err)
	}
}

func TestALogMayBeginSealed(t *testing.T) {
	dir := t.TempDir()
	l := mustOpen(t, sealedConfig(dir))
	mustAppend(t, l, read(1))
	mustClose(t, l)
	l = mustOpen(t, config(dir)) // the agent was unlocked before it opened the log again
	mustAppend(t, l, read(2))
	head := mustSync(t, l)
	if report := mustVerify(t, dir, &head); report.Sealed != 0 {
		t.Errorf("report %+v", report)
	}
}

func TestWhatIsChangedWhileSealedIsFoundAtTheUnlock(t *testing.T) {
	dir := t.TempDir()
	written(t, dir)
	l := mustOpen(t, sealedConfig(dir))
	mustAppend(t, l, read(2000), read(2001))
	mustSync(t, l)
	// Somebody rewrites the sealed part consistently: without a key that is easy.
	path := segments(t, dir)
	last := path[len(path)-1]
	lines := slices.Collect(bytes.Lines(content(t, last)))
	c, err := newChain(nil)
	if err != nil {
		t.Fatal(err)
	}
	before, err := parseRecord(bytes.TrimSuffix(lines[len(lines)-2], []byte("\n")))
	if err != nil {
		t.Fatal(err)
	}
	forged := bytes.Replace(lines[len(lines)-1], []byte("request-2001"), []byte("request-2002"), 1)
	body := forged[:len(forged)-1-macSuffix]
	mac := *c.sum(true, &before.MAC, body)
	lines[len(lines)-1] = appendMAC(slices.Clone(body), &mac)
	replace(t, last, bytes.Join(lines, nil))
	if err := l.Unlock(testKey, nil); err != nil {
		t.Fatal(err)
	}
	if found := l.Found(); len(found.Problems) == 0 || found.Problems[0].Kind != Changed {
		t.Errorf("found %v", found.Problems)
	}
	head := mustSync(t, l)
	report, err := Verify(dir, testKey, &head)
	if !errors.Is(err, secret.ErrTampered) || report.Head != head {
		t.Errorf("%v, %+v", err, report)
	}
}

func TestASealedLogWhoseEndWasChangedBreaksAtTheUnlock(t *testing.T) {
	dir := t.TempDir()
	head := written(t, dir)
	path := segments(t, dir)
	last := path[len(path)-1]
	replace(t, last, bytes.Replace(content(t, last), []byte("request-1000"), []byte("request-1001"), 1))
	l := mustOpen(t, sealedConfig(dir))
	if found := l.Found(); len(found.Problems) > 0 {
		t.Errorf("found without a key: %v", found.Problems)
	}
	if err := l.Unlock(testKey, &head); err != nil {
		t.Fatal(err)
	}
	if found := l.Found(); len(found.Problems) == 0 {
		t.Error("found nothing")
	}
	newHead := mustSync(t, l)
	report, _ := Verify(dir, testKey, &newHead)
	if n := len(report.Problems); n < 2 || report.Problems[n-1].Kind != Broken || !strings.Contains(report.Problems[n-1].Detail, "changed") {
		t.Errorf("problems %v", report.Problems)
	}
}

func TestUnlockRefusesABadKeyAndStaysSealed(t *testing.T) {
	l := mustOpen(t, sealedConfig(t.TempDir()))
	for _, key := range [][]byte{nil, testKey[:8]} {
		if err := l.Unlock(key, nil); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("error %v", err)
		}
	}
	mustAppend(t, l, read(1))
	if err := l.Unlock(testKey, nil); err != nil {
		t.Error(err)
	}
}
