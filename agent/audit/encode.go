// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"encoding/hex"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/keyhole-agent/keyhole/identity"
)

const (
	maxText = 4096    // bytes of one text
	maxLine = 1 << 20 // bytes of one line; far more than bounded texts need

	macField  = `,"mac":"`
	macSuffix = len(macField) + 64 + len(`"}`)
)

// appendRecord appends the line of a record up to its MAC. It allocates only
// for texts that have to be repaired.
func appendRecord(b []byte, index uint64, sealed bool, e *Event) []byte {
	b = append(b, `{"index":`...)
	b = strconv.AppendUint(b, index, 10)
	b = append(b, `,"time":"`...)
	b = appendTime(b, e.Time)
	b = append(b, '"')
	b = appendTrue(b, `,"sealed":true`, sealed)
	b = appendNamed(b, `,"request":`, e.Caller.Request)
	b = appendNamed(b, `,"operation":`, e.Operation)
	b = appendNamed(b, `,"phase":`, string(e.Phase))
	b = appendHex(b, `,"batch":"`, &e.Batch)
	b = appendCaller(b, &e.Caller)
	b = appendNamed(b, `,"path":`, e.Path)
	b = appendHex(b, `,"secret_id":"`, (*[16]byte)(&e.SecretID))
	b = appendNumber(b, `,"version":`, e.Version)
	b = appendNumber(b, `,"revision":`, e.Revision)
	b = appendNamed(b, `,"decision":`, string(e.Decision))
	b = appendNamed(b, `,"deciding_id":`, e.DecidingID.String())
	b = appendNamed(b, `,"policy":`, e.Policy)
	b = appendNamed(b, `,"reason":`, e.Reason)
	b = appendNumber(b, `,"count":`, positive(e.Count))
	return appendTrue(b, `,"development":true`, e.Development)
}

func appendCaller(b []byte, c *identity.Caller) []byte {
	open := false
	for i := range c.IDs {
		if c.IDs[i].IsZero() {
			continue
		}
		if open {
			b = append(b, ',')
		} else {
			b = append(b, `,"spiffe_ids":[`...)
		}
		open = true
		b = appendText(b, c.IDs[i].String())
	}
	if open {
		b = append(b, ']')
	}
	b = appendNamed(b, `,"source":`, string(c.Source))
	p := &c.Process
	pid := positive(p.PID)
	if pid == 0 && p.UID == 0 && p.GID == 0 && p.Executable == "" && p.Cgroup == 0 {
		return b
	}
	// Zero means something for these three: root, or a caller outside the pid
	// namespace. They are there together or not at all.
	b = strconv.AppendUint(append(b, `,"pid":`...), pid, 10)
	b = strconv.AppendUint(append(b, `,"uid":`...), uint64(p.UID), 10)
	b = strconv.AppendUint(append(b, `,"gid":`...), uint64(p.GID), 10)
	b = appendNamed(b, `,"executable":`, p.Executable)
	return appendNumber(b, `,"cgroup":`, p.Cgroup)
}

func positive(n int) uint64 { return uint64(max(n, 0)) }

func appendMAC(b []byte, mac *[32]byte) []byte {
	b = append(b, macField...)
	b = hex.AppendEncode(b, mac[:])
	return append(b, "\"}\n"...)
}

func appendTrue(b []byte, field string, value bool) []byte {
	if value {
		b = append(b, field...)
	}
	return b
}

func appendNumber(b []byte, field string, value uint64) []byte {
	if value == 0 {
		return b
	}
	return strconv.AppendUint(append(b, field...), value, 10)
}

func appendHex(b []byte, field string, value *[16]byte) []byte {
	if *value == [16]byte{} {
		return b
	}
	return append(hex.AppendEncode(append(b, field...), value[:]), '"')
}

func appendNamed(b []byte, field, text string) []byte {
	if text == "" {
		return b
	}
	return appendText(append(b, field...), text)
}

// plain reports whether a byte stands for itself in a text.
func plain(c byte) bool { return c >= ' ' && c < 0x7f && c != '"' && c != '\\' }

// appendText appends s as a JSON string (RFC 8259). Beyond what JSON demands it
// escapes the control characters from 0x7f to 0x9f, which terminals obey, and
// U+2028 and U+2029, at which some readers of lines split. A text has exactly
// one encoding.
func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	n := 0
	for n < len(s) && plain(s[n]) {
		n++
	}
	if n == len(s) && n <= maxText {
		return append(append(b, s...), '"')
	}
	s = bounded(s)
	for _, r := range s {
		switch {
		case r < utf8.RuneSelf && plain(byte(r)):
			b = append(b, byte(r))
		case r == '"' || r == '\\':
			b = append(b, '\\', byte(r))
		case r == '\n':
			b = append(b, `\n`...)
		case r == '\r':
			b = append(b, `\r`...)
		case r == '\t':
			b = append(b, `\t`...)
		case r < 0xa0 || r == 0x2028 || r == 0x2029:
			b = append(b, '\\', 'u', hexDigit(r>>12), hexDigit(r>>8), hexDigit(r>>4), hexDigit(r))
		default:
			b = utf8.AppendRune(b, r)
		}
	}
	return append(b, '"')
}

func hexDigit(r rune) byte { return "0123456789abcdef"[r&15] }

// bounded repairs and cuts a text.
func bounded(s string) string {
	if !utf8.ValidString(s) {
		s = strings.Map(func(r rune) rune { return r }, s) // each byte that is not UTF-8 becomes U+FFFD
	}
	if len(s) <= maxText {
		return s
	}
	n := maxText
	for !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n] + "…"
}

const timeLength = len("2006-01-02T15:04:05.000000000Z")

// appendTime appends t in UTC with nanoseconds (RFC 3339), always 30 bytes. A
// year that does not fit is written as the zero time.
func appendTime(b []byte, t time.Time) []byte {
	t = t.UTC()
	year, month, day := t.Date()
	if year < 0 || year > 9999 {
		return appendTime(b, time.Time{})
	}
	hour, minute, second := t.Clock()
	b = append(appendDigits(b, year, 4), '-')
	b = append(appendDigits(b, int(month), 2), '-')
	b = append(appendDigits(b, day, 2), 'T')
	b = append(appendDigits(b, hour, 2), ':')
	b = append(appendDigits(b, minute, 2), ':')
	b = append(appendDigits(b, second, 2), '.')
	return append(appendDigits(b, t.Nanosecond(), 9), 'Z')
}

func appendDigits(b []byte, n, width int) []byte {
	var digits [9]byte
	for i := width - 1; i >= 0; i-- {
		digits[i] = byte('0' + n%10)
		n /= 10
	}
	return append(b, digits[:width]...)
}
