// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// full has every field set.
func full() Event {
	e := read(123456789)
	e.Caller.IDs = append(e.Caller.IDs, spiffeid.RequireFromString("spiffe://example.org/second"))
	e.Phase, e.Batch = Outcome, [16]byte{0xab, 15: 1}
	e.DecidingID = e.Caller.IDs[1]
	e.Reason, e.Count, e.Development = "say \"why\"\n\x1b[31m \u2028 ü€𝄞", 4, true
	return e
}

func encoded(index uint64, sealed bool, e Event) []byte {
	line := appendMAC(appendRecord(nil, index, sealed, &e), &[32]byte{1, 31: 0xff})
	return line[:len(line)-1]
}

func TestARecordReadsBackAsItWasWritten(t *testing.T) {
	for name, e := range map[string]Event{
		"full":       full(),
		"empty":      {Time: time.Time{}},
		"root":       {Caller: identity.Caller{Process: identity.Process{PID: 1}}},
		"thread 0":   {Caller: identity.Caller{Process: identity.Process{UID: 5}}},
		"no process": {Caller: identity.Caller{Source: identity.Agent}},
		"late":       {Time: time.Date(9999, 12, 31, 23, 59, 59, 999999999, time.UTC)},
	} {
		for _, sealed := range []bool{false, true} {
			line := encoded(77, sealed, e)
			r, err := parseRecord(line)
			if err != nil {
				t.Errorf("%s: %v\n%s", name, err, line)
			}
			want := Record{Event: e, Index: 77, Sealed: sealed, MAC: [32]byte{1, 31: 0xff}}
			if !reflect.DeepEqual(r, want) {
				t.Errorf("%s:\n got %+v\nwant %+v", name, r, want)
			}
		}
	}
}

func TestARecordIsJSONInTheDocumentedForm(t *testing.T) {
	var got map[string]any
	if err := json.Unmarshal(encoded(9, true, full()), &got); err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"index": 9.0, "time": "2026-01-02T03:04:05.123456789Z", "sealed": true, "request": "request-123456789",
		"operation": "get", "phase": "outcome", "batch": "ab000000000000000000000000000001",
		"spiffe_ids": []any{"spiffe://example.org/ns/prod/sa/app", "spiffe://example.org/second"},
		"source":     "x509", "pid": 4711.0, "uid": 1001.0, "gid": 1001.0, "executable": "/usr/bin/app", "cgroup": 99.0,
		"path": "db/creds", "secret_id": "01020300000000000000000000000000", "version": 3.0, "revision": 17.0,
		"decision": "allowed", "deciding_id": "spiffe://example.org/second", "policy": "app-read",
		"reason": "say \"why\"\n\x1b[31m \u2028 ü€𝄞", "count": 4.0, "development": true,
		"mac": "01" + strings.Repeat("00", 30) + "ff",
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf(" got %v\nwant %v", got, want)
	}
}

func TestTextsAreBounded(t *testing.T) {
	e := Event{Reason: strings.Repeat("é", 3000), Operation: strings.Repeat("x", maxText)}
	r, err := parseRecord(encoded(1, false, e))
	if err != nil {
		t.Fatal(err)
	}
	if want := strings.Repeat("é", maxText/2) + "…"; r.Reason != want || r.Operation != e.Operation {
		t.Errorf("%d and %d bytes", len(r.Reason), len(r.Operation))
	}
}

func TestOnlyTheOneFormOfARecordIsAccepted(t *testing.T) {
	good := string(encoded(5, false, full()))
	for name, change := range map[string][2]string{
		"a space":            {`{"index"`, `{ "index"`},
		"a leading zero":     {`"index":5`, `"index":05`},
		"index zero":         {`"index":5`, `"index":0`},
		"a huge index":       {`"index":5`, `"index":18446744073709551615`},
		"overflow":           {`"version":3`, `"version":99999999999999999999`},
		"a zero field":       {`"version":3`, `"version":0`},
		"a large uid":        {`"uid":1001`, `"uid":4294967296`},
		"a large count":      {`"count":4`, `"count":18446744073709551615`},
		"another order":      {`"uid":1001,"gid":1001`, `"gid":1001,"uid":1001`},
		"an unknown field":   {`,"path"`, `,"extra":1,"path"`},
		"an empty text":      {`"path":"db/creds"`, `"path":""`},
		"upper-case hex":     {`"batch":"ab`, `"batch":"AB`},
		"a needless escape":  {`"get"`, `"g\u0065t"`},
		"another escape":     {`\n`, `\u000a`},
		"a raw control":      {`\u001b`, "\x1b"},
		"a surrogate":        {`\u001b`, `\ud800`},
		"bad UTF-8":          {`ü`, "\xff"},
		"no such day":        {`2026-01-02T`, `2026-02-30T`},
		"no such hour":       {`T03:`, `T24:`},
		"an invalid ID":      {`spiffe://example.org/second"]`, `http://example.org/"]`},
		"false":              {`"development":true`, `"development":false`},
		"a short MAC":        {`ff"}`, `"}`},
		"something after it": {`ff"}`, `ff"} `},
	} {
		bad := strings.Replace(good, change[0], change[1], 1)
		if bad == good {
			t.Fatalf("%s: nothing changed", name)
		}
		if _, err := parseRecord([]byte(bad)); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: error %v", name, err)
		}
	}
}

func FuzzParseRecord(f *testing.F) {
	f.Add(encoded(1, false, full()))
	f.Add(encoded(2, true, Event{}))
	f.Add([]byte(`{"index":1,"time":"2026-01-02T03:04:05.000000000Z","mac":"` + strings.Repeat("0", 64) + `"}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		r, err := parseRecord(line)
		if err != nil {
			return
		}
		again := appendMAC(appendRecord(nil, r.Index, r.Sealed, &r.Event), &r.MAC)
		if !bytes.Equal(again[:len(again)-1], line) {
			t.Errorf("read  %s\nwrote %s", line, again)
		}
		if !json.Valid(line) {
			t.Errorf("not JSON: %s", line)
		}
	})
}

func FuzzParseHeader(f *testing.F) {
	h := header{First: 5, Previous: [32]byte{1}, Unfinished: 3, Sealed: true}
	line := appendMAC(appendHeader(nil, &h), &[32]byte{2})
	f.Add(line[:len(line)-1])
	f.Fuzz(func(t *testing.T, line []byte) {
		h, err := parseHeader(line)
		if err != nil {
			return
		}
		again := appendMAC(appendHeader(nil, &h), &h.MAC)
		if !bytes.Equal(again[:len(again)-1], line) || !json.Valid(line) {
			t.Errorf("read  %s\nwrote %s", line, again)
		}
	})
}

// FuzzEncode compares with encoding/json what any reader gets to see.
func FuzzEncode(f *testing.F) {
	f.Add("get", "why\u0085 \x7f <&> \\", "/usr/bin/\xff\xfe", int64(0), uint64(1))
	f.Add("", strings.Repeat("\xf0\x9f", 3000), "a\x00b", int64(-1<<62), uint64(1<<63))
	f.Fuzz(func(t *testing.T, operation, reason, executable string, nanos int64, version uint64) {
		e := Event{Time: time.Unix(0, nanos), Operation: operation, Reason: reason, Version: version}
		e.Caller.Process.Executable = executable
		line := encoded(1, false, e)
		var got struct {
			Time       time.Time
			Operation  string
			Reason     string
			Executable string
			Version    uint64
		}
		if err := json.Unmarshal(line, &got); err != nil {
			t.Fatalf("%v: %q", err, line)
		}
		if got.Operation != seen(t, operation) || got.Reason != seen(t, reason) || got.Executable != seen(t, executable) ||
			got.Version != version || !got.Time.Equal(e.Time) {
			t.Errorf("%+v from %q", got, line)
		}
		if !utf8.Valid(line) || bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' || r >= 0x7f && r < 0xa0 }) {
			t.Errorf("line %q", line)
		}
		if _, err := parseRecord(line); err != nil {
			t.Errorf("%v: %q", err, line)
		}
	})
}

// seen is what becomes of a text on its way through encoding/json, cut to the
// length that a record gives it.
func seen(t *testing.T, text string) string {
	t.Helper()
	data, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	var back string
	if err := json.Unmarshal(data, &back); err != nil {
		t.Fatal(err)
	}
	if len(back) <= maxText {
		return back
	}
	n := maxText
	for !utf8.RuneStart(back[n]) {
		n--
	}
	return back[:n] + "…"
}

// The MACs of the documented chain, computed as the documentation says.
func TestTheChainIsThatOfTheDocumentation(t *testing.T) {
	dir := t.TempDir()
	mustAppend(t, mustOpen(t, config(dir)), read(1))
	lines := bytes.Split(content(t, segments(t, dir)[0]), []byte("\n"))
	previous := make([]byte, 32)
	for i, line := range lines[:3] {
		body, rest, found := bytes.Cut(line, []byte(`,"mac":"`))
		want := mac(testKey, previous, body)
		if !found || string(rest) != hex.EncodeToString(want)+`"}` {
			t.Errorf("line %d: MAC %s, want %x", i+1, rest, want)
		}
		if i > 0 {
			previous = want
		}
	}
}
