// SPDX-License-Identifier: Apache-2.0

package seal

import "encoding/binary"

// reader takes a persisted form apart. After the first thing that is not there
// it is failed, and answers with zeros and nil. Numbers are big-endian.
type reader struct {
	rest   []byte
	failed bool
}

// take returns the next n bytes, which stay part of what is read; nil when
// there are fewer.
func (r *reader) take(n int) []byte {
	if r.failed || n < 0 || n > len(r.rest) {
		r.failed = true
		return nil
	}
	taken := r.rest[:n:n]
	r.rest = r.rest[n:]
	return taken
}

// takeOrZero is take for bytes that are converted to an array at once.
func (r *reader) takeOrZero(n int) []byte {
	if taken := r.take(n); taken != nil {
		return taken
	}
	return make([]byte, n)
}

func (r *reader) uint8() uint8   { return r.takeOrZero(1)[0] }
func (r *reader) uint16() uint16 { return binary.BigEndian.Uint16(r.takeOrZero(2)) }
func (r *reader) uint32() uint32 { return binary.BigEndian.Uint32(r.takeOrZero(4)) }
func (r *reader) uint64() uint64 { return binary.BigEndian.Uint64(r.takeOrZero(8)) }

// Parts of a variable size have their length before them.
func (r *reader) short() []byte { return r.take(int(r.uint8())) }
func (r *reader) bytes() []byte { return r.take(int(r.uint16())) }

func appendShort(buffer, part []byte) []byte {
	return append(append(buffer, byte(len(part))), part...)
}

func appendBytes(buffer, part []byte) []byte {
	return append(binary.BigEndian.AppendUint16(buffer, uint16(len(part))), part...)
}
