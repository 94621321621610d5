// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
	"pgregory.net/rapid"
)

// anything draws what an answer may consist of.
func anything() *rapid.Generator[any] {
	leaf := rapid.OneOf(
		rapid.Map(rapid.String(), func(s string) any { return s }),
		rapid.Map(rapid.SampledFrom([]string{"", "yes", "null", "~", "1", "0x1", "1e3", "2026-01-02", "- a", "a: b", "#", "\x7f", "\u0085", "\u2028", "<&>", " a", "a ", "a\n", "\n\n", "\ufeff"}), func(s string) any { return s }),
		rapid.Map(rapid.Uint32(), func(n uint32) any { return float64(n) }),
		rapid.Map(rapid.Bool(), func(b bool) any { return b }),
		rapid.Just[any](nil),
	)
	return rapid.OneOf(
		leaf,
		rapid.Map(rapid.SliceOfN(leaf, 0, 4), func(s []any) any { return s }),
		rapid.Map(rapid.MapOfN(rapid.String(), leaf, 0, 4), func(m map[string]any) any { return m }),
	)
}

func TestYAMLSaysWhatJSONSays(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		answer := map[string]any{"answer": anything().Draw(t, "answer")}
		document, err := json.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		var inJSON map[string]any
		if err := json.Unmarshal(document, &inJSON); err != nil {
			t.Fatal(err)
		}
		var written strings.Builder
		if err := writeYAML(&written, answer); err != nil {
			t.Fatal(err)
		}
		var inYAML map[string]any
		if err := yaml.Unmarshal([]byte(written.String()), &inYAML); err != nil {
			t.Fatalf("%v:\n%s", err, written.String())
		}
		if !reflect.DeepEqual(floats(inYAML), any(inJSON)) {
			t.Fatalf("%#v is %#v in\n%s", inJSON, inYAML, written.String())
		}
	})
}

// floats makes the numbers of a YAML document those of a JSON one.
func floats(value any) any {
	switch v := value.(type) {
	case int:
		return float64(v)
	case []any:
		for i := range v {
			v[i] = floats(v[i])
		}
	case map[string]any:
		for name := range v {
			v[name] = floats(v[name])
		}
	}
	return value
}

func TestATableCannotCommandTheTerminalNorBeMistaken(t *testing.T) {
	shown := map[string]string{}
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.StringMatching(`["a\\]{0,4}`)).Draw(t, "text")
		cell := shownText(text)
		if strings.ContainsAny(cell, "\x1b\x00\n\r\t\v\f\u0085\u202e") {
			t.Fatalf("%q is shown as %q", text, cell)
		}
		if other, taken := shown[cell]; taken && other != text {
			t.Fatalf("%q and %q are both shown as %q", text, other, cell)
		}
		shown[cell] = text
	})
}

func TestAnErrorIsOneLineThatCannotCommandTheTerminal(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		line := oneLine(rapid.String().Draw(t, "text"))
		if strings.ContainsAny(line, "\x1b\x00\n\r\t\u0085") {
			t.Fatalf("%q", line)
		}
	})
	if got := oneLine("a: b\nc: d"); got != "a: b; c: d" {
		t.Error(got)
	}
}

func TestAgesAreInWholeUnits(t *testing.T) {
	for d, want := range map[time.Duration]string{
		-time.Hour: "0s", 0: "0s", 59*time.Second + 999*time.Millisecond: "59s", time.Minute: "1m",
		59 * time.Minute: "59m", time.Hour: "1h", 47 * time.Hour: "47h", 48 * time.Hour: "2d", 365 * 24 * time.Hour: "365d",
	} {
		if got := age(d); got != want {
			t.Errorf("%s is shown as %s, not %s", d, got, want)
		}
	}
	p := &program{now: func() time.Time { return time.Unix(100, 0) }}
	if got := p.when(time.Time{}); got != "-" {
		t.Error(got)
	}
	if got := p.when(time.Unix(40, 0)); !strings.HasPrefix(got, "1m ago (1970-01-01T") {
		t.Error(got)
	}
}

func TestADurationHasDaysAndWeeks(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"30d": 30 * day, "2w": 14 * day, "1w2d3h": 9*day + 3*time.Hour, "12h": 12 * time.Hour, "90s": 90 * time.Second,
		"1d1.5h": day + 90*time.Minute, "0": 0, "0s": 0,
	} {
		var d duration
		if err := d.Set(text); err != nil || time.Duration(d) != want {
			t.Errorf("%q is %s: %v", text, time.Duration(d), err)
		}
	}
	for _, text := range []string{"", "d", "1", "-1h", "1d-2h", "1h2d", "1x", "99999999999999999999d", "200000w", "15000w15000w", "1d ", " 1d", "1.5d"} {
		var d duration
		if err := d.Set(text); err == nil {
			t.Errorf("%q is taken for %s", text, time.Duration(d))
		}
	}
	rapid.Check(t, func(t *rapid.T) {
		var d duration
		if err := d.Set(rapid.StringMatching(`[0-9]{0,20}[dwhms]{0,2}[0-9]{0,20}[dwhms]?`).Draw(t, "text")); err == nil && d < 0 {
			t.Fatalf("a negative duration %s", time.Duration(d))
		}
	})
}

func TestTheFormOfAnswersIsCheckedBeforeAnythingIsDone(t *testing.T) {
	marker := t.TempDir() + "/made"
	code, _, said := inProcess(t, nil, "init", "-o", "xml", "--config", marker, "--trust-domain", "example.org", "--administrator", "spiffe://example.org/a")
	if _, err := os.Stat(marker); code != exitUsage || err == nil {
		t.Errorf("exit code %d, %s, %v", code, said, err)
	}
}
