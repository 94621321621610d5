// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// parseRecord reads a line without its newline. It accepts exactly what
// appendRecord and appendMAC write, so that one record has one form: no other
// order, no spaces, no zero fields, no unknown ones. The error is
// secret.ErrInvalid and says where.
func parseRecord(line []byte) (Record, error) {
	p := parser{rest: line}
	var r Record
	var ok bool
	p.must(`{"index":`)
	r.Index, ok = p.number()
	p.check(ok && r.Index > 0 && r.Index < maxFirst)
	p.must(`,"time":"`)
	r.Time = p.time()
	p.must(`"`)
	r.Sealed = p.skip(`,"sealed":true`)
	p.text(`,"request":`, &r.Caller.Request)
	p.text(`,"operation":`, &r.Operation)
	p.text(`,"phase":`, (*string)(&r.Phase))
	p.id(`,"batch":"`, &r.Batch)
	p.caller(&r.Caller)
	p.text(`,"path":`, &r.Path)
	p.id(`,"secret_id":"`, (*[16]byte)(&r.SecretID))
	p.positive(`,"version":`, &r.Version)
	p.positive(`,"revision":`, &r.Revision)
	p.text(`,"decision":`, (*string)(&r.Decision))
	var deciding string
	if p.text(`,"deciding_id":`, &deciding) {
		r.DecidingID = p.spiffeID(deciding)
	}
	p.text(`,"policy":`, &r.Policy)
	p.text(`,"reason":`, &r.Reason)
	var count uint64
	p.positive(`,"count":`, &count)
	r.Count = int(count)
	p.check(r.Count >= 0)
	r.Development = p.skip(`,"development":true`)
	p.mac(&r.MAC)
	return r, p.end(line, "record")
}

// parser takes a line apart from the left. After the first mistake every step
// fails, and what is left tells where that was.
type parser struct {
	rest   []byte
	failed bool
}

func (p *parser) check(ok bool) {
	if !ok {
		p.failed = true
	}
}

// end tells whether everything was read, and well.
func (p *parser) end(line []byte, what string) error {
	if !p.failed && len(p.rest) == 0 {
		return nil
	}
	return fmt.Errorf("%w %s: not in its form at or before byte %d of %d", secret.ErrInvalid, what, len(line)-len(p.rest)+1, len(line))
}

func (p *parser) skip(literal string) bool {
	if p.failed || len(p.rest) < len(literal) || string(p.rest[:len(literal)]) != literal {
		return false
	}
	p.rest = p.rest[len(literal):]
	return true
}

func (p *parser) must(literal string) { p.check(p.skip(literal)) }

// number reads a decimal number without leading zeros.
func (p *parser) number() (uint64, bool) {
	n := 0
	for n < len(p.rest) && '0' <= p.rest[n] && p.rest[n] <= '9' {
		n++
	}
	if n == 0 || n > 1 && p.rest[0] == '0' {
		return 0, false
	}
	value, err := strconv.ParseUint(string(p.rest[:n]), 10, 64)
	if p.failed || err != nil {
		return 0, false
	}
	p.rest = p.rest[n:]
	return value, true
}

func (p *parser) positive(field string, value *uint64) {
	if p.skip(field) {
		var ok bool
		*value, ok = p.number()
		p.check(ok && *value > 0)
	}
}

func (p *parser) number32(field string) uint32 {
	p.must(field)
	value, ok := p.number()
	p.check(ok && value <= 1<<32-1)
	return uint32(value)
}

func (p *parser) digits(width int) int {
	if p.failed || len(p.rest) < width {
		p.failed = true
		return 0
	}
	n := 0
	for _, c := range p.rest[:width] {
		p.check('0' <= c && c <= '9')
		n = n*10 + int(c) - '0'
	}
	p.rest = p.rest[width:]
	return n
}

// time reads what appendTime wrote; comparing catches the 31st of February.
func (p *parser) time() time.Time {
	was := p.rest
	year := p.digits(4)
	p.must("-")
	month := p.digits(2)
	p.must("-")
	day := p.digits(2)
	p.must("T")
	hour := p.digits(2)
	p.must(":")
	minute := p.digits(2)
	p.must(":")
	second := p.digits(2)
	p.must(".")
	nano := p.digits(9)
	p.must("Z")
	if p.failed {
		return time.Time{}
	}
	t := time.Date(year, time.Month(month), day, hour, minute, second, nano, time.UTC)
	var form [timeLength]byte
	p.check(bytes.Equal(appendTime(form[:0], t), was[:timeLength]))
	return t
}

// text reads an optional field, which is not empty when it is there.
func (p *parser) text(field string, value *string) bool {
	if !p.skip(field) {
		return false
	}
	*value = p.quoted()
	p.check(*value != "")
	return !p.failed
}

func (p *parser) quoted() string {
	p.must(`"`)
	n := 0
	for n < len(p.rest) && plain(p.rest[n]) {
		n++
	}
	if n < len(p.rest) && n <= maxText && p.rest[n] == '"' && !p.failed {
		text := string(p.rest[:n])
		p.rest = p.rest[n+1:]
		return text
	}
	return p.escaped()
}

// escaped reads a text the slow way, and compares it with how it would have
// been written.
func (p *parser) escaped() string {
	var text strings.Builder
	i := 0
	for i < len(p.rest) && p.rest[i] != '"' {
		if p.rest[i] != '\\' {
			text.WriteByte(p.rest[i])
			i++
			continue
		}
		r, n := unescape(p.rest[i:])
		if n == 0 {
			break
		}
		text.WriteRune(r)
		i += n
	}
	written := appendText(nil, text.String())
	if p.failed || i >= len(p.rest) || !bytes.Equal(written[1:], p.rest[:i+1]) {
		p.failed = true
		return ""
	}
	p.rest = p.rest[i+1:]
	return text.String()
}

// unescape reads one escape sequence; n is 0 when there is none.
func unescape(b []byte) (r rune, n int) {
	if len(b) < 2 {
		return 0, 0
	}
	switch b[1] {
	case '"', '\\':
		return rune(b[1]), 2
	case 'n':
		return '\n', 2
	case 'r':
		return '\r', 2
	case 't':
		return '\t', 2
	case 'u':
		if len(b) < 6 {
			return 0, 0
		}
		value, err := strconv.ParseUint(string(b[2:6]), 16, 16)
		if err != nil || !utf8.ValidRune(rune(value)) {
			return 0, 0
		}
		return rune(value), 6
	}
	return 0, 0
}

func (p *parser) caller(c *identity.Caller) {
	if p.skip(`,"spiffe_ids":[`) {
		for more := true; more && !p.failed; more = p.skip(",") {
			c.IDs = append(c.IDs, p.spiffeID(p.quoted()))
		}
		p.must("]")
	}
	p.text(`,"source":`, (*string)(&c.Source))
	if !p.skip(`,"pid":`) {
		return
	}
	pid, ok := p.number()
	c.Process.PID = int(pid)
	p.check(ok && c.Process.PID >= 0)
	c.Process.UID = p.number32(`,"uid":`)
	c.Process.GID = p.number32(`,"gid":`)
	p.text(`,"executable":`, &c.Process.Executable)
	p.positive(`,"cgroup":`, &c.Process.Cgroup)
	p.check(c.Process != identity.Process{})
}

func (p *parser) spiffeID(text string) spiffeid.ID {
	id, err := spiffeid.FromString(text)
	p.check(err == nil && id.String() == text)
	return id
}

func (p *parser) id(field string, id *[16]byte) {
	if p.skip(field) {
		p.hex(id[:])
		p.must(`"`)
		p.check(*id != [16]byte{})
	}
}

func (p *parser) mac(mac *[32]byte) {
	p.must(macField)
	p.hex(mac[:])
	p.must(`"}`)
}

// hex reads lower-case digits only.
func (p *parser) hex(into []byte) {
	if p.failed || len(p.rest) < 2*len(into) {
		p.failed = true
		return
	}
	for i := range into {
		high := strings.IndexByte("0123456789abcdef", p.rest[2*i])
		low := strings.IndexByte("0123456789abcdef", p.rest[2*i+1])
		if high < 0 || low < 0 {
			p.failed = true
			return
		}
		into[i] = byte(high<<4 | low)
	}
	p.rest = p.rest[2*len(into):]
}
