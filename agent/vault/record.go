// SPDX-License-Identifier: Apache-2.0

package vault

import (
	"encoding/binary"
	"fmt"
	"slices"
	"time"

	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// state is what the store knows of a secret, but for its values. It is kept
// sealed, in two parts under one data key, so that a read of the current
// version need not open the history. The data key is a new one with each
// write: parts of two writes never open together.
type state struct {
	path    secret.Path
	id      secret.ID
	created time.Time
	updated time.Time
	latest  secret.Version
	emptyAt time.Time
	live    secret.VersionInfo // the current version; zero when there is none
	keys    []secret.KeySize   // of the current version

	history []secret.VersionInfo // ascending; nil when it was not opened
}

// The sealed parts, in unsigned varints but for the times, which are varints of
// Unix nanoseconds, 0 for none:
//
//	head:    format=1 | path | created | updated | latest | emptyAt
//	         | current version, 0 for none | created | size | writer
//	         | count, count × { key | size }
//	history: format=1 | count, count × writer
//	         | count, count × { version | state | created | deletedAt | size | writer's place }
//
// A path, key or writer is its length and its bytes.
const stateFormat = 1

func (s *state) encodeHead() []byte {
	b := appendText([]byte{stateFormat}, s.path.String())
	b = appendTime(appendTime(b, s.created), s.updated)
	b = binary.AppendUvarint(b, uint64(s.latest))
	b = appendTime(b, s.emptyAt)
	b = binary.AppendUvarint(b, uint64(s.live.Version))
	b = binary.AppendUvarint(appendTime(b, s.live.Created), uint64(s.live.Size))
	b = appendText(b, s.live.Writer)
	b = binary.AppendUvarint(b, uint64(len(s.keys)))
	for _, k := range s.keys {
		b = binary.AppendUvarint(appendText(b, k.Key.String()), uint64(k.Size))
	}
	return b
}

func (s *state) encodeHistory() []byte {
	var writers []string
	for _, v := range s.history {
		if !slices.Contains(writers, v.Writer) {
			writers = append(writers, v.Writer)
		}
	}
	b := binary.AppendUvarint([]byte{stateFormat}, uint64(len(writers)))
	for _, w := range writers {
		b = appendText(b, w)
	}
	b = binary.AppendUvarint(b, uint64(len(s.history)))
	for _, v := range s.history {
		b = binary.AppendUvarint(b, uint64(v.Version))
		b = append(b, byte(v.State))
		b = appendTime(appendTime(b, v.Created), v.DeletedAt)
		b = binary.AppendUvarint(b, uint64(v.Size))
		b = binary.AppendUvarint(b, uint64(slices.Index(writers, v.Writer)))
	}
	return b
}

func decodeHead(data []byte, id secret.ID) (*state, error) {
	r := newReader(data)
	s := &state{id: id}
	var err error
	if s.path, err = secret.ParsePath(r.text()); err != nil {
		r.failed = true
	}
	s.created, s.updated = r.time(), r.time()
	s.latest, s.emptyAt = secret.Version(r.uint()), r.time()
	s.live.Version, s.live.Created = secret.Version(r.uint()), r.time()
	s.live.Size, s.live.Writer = int(r.uint()), r.text()
	count := r.count()
	s.keys = make([]secret.KeySize, 0, count)
	for range count {
		key, err := secret.ParseKey(r.text())
		if err != nil {
			r.failed = true
		}
		s.keys = append(s.keys, secret.KeySize{Key: key, Size: int(r.uint())})
	}
	return s, r.done("head")
}

func (s *state) decodeHistory(data []byte) error {
	r := newReader(data)
	writers := make([]string, 0, 4)
	for range r.count() {
		writers = append(writers, r.text())
	}
	count := r.count()
	s.history = make([]secret.VersionInfo, 0, count)
	for range count {
		v := secret.VersionInfo{
			Version: secret.Version(r.uint()), State: secret.State(r.byte()),
			Created: r.time(), DeletedAt: r.time(), Size: int(r.uint()),
		}
		place := r.uint()
		if place >= uint64(len(writers)) {
			r.failed = true
			break
		}
		v.Writer = writers[place]
		s.history = append(s.history, v)
	}
	return r.done("history")
}

// version returns the place of v in the history, and whether it is there.
func (s *state) version(v secret.Version) (int, bool) {
	return slices.BinarySearchFunc(s.history, v, func(a secret.VersionInfo, b secret.Version) int {
		return int(int64(a.Version) - int64(b))
	})
}

// settle recomputes what follows from the history, after a change at now. When
// another version became current, its keys are the caller's to fill in.
func (s *state) settle(now time.Time) {
	s.updated = now
	s.live = secret.VersionInfo{}
	for _, v := range slices.Backward(s.history) {
		if v.State == secret.Live {
			s.live, s.emptyAt = v, time.Time{}
			return
		}
	}
	s.keys = nil
	if s.emptyAt.IsZero() {
		s.emptyAt = now
	}
}

// info describes s at the given revision. Without an opened history, it lists
// the current version alone.
func (s *state) info(revision backend.Seq) secret.Info {
	info := secret.Info{
		Path: s.path, ID: s.id, Revision: uint64(revision), Created: s.created, Updated: s.updated,
		Current: s.live.Version, Latest: s.latest, EmptyAt: s.emptyAt, Keys: s.keys, Versions: s.history,
	}
	switch {
	case len(s.history) > 0:
		info.Oldest = s.history[0].Version
	case s.history == nil && s.live.Version != 0:
		info.Versions = []secret.VersionInfo{s.live}
	}
	return info
}

func appendText(b []byte, text string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(text))), text...)
}

func appendTime(b []byte, t time.Time) []byte {
	if t.IsZero() {
		return append(b, 0)
	}
	return binary.AppendVarint(b, t.UnixNano())
}

// reader takes an encoded part to pieces. After the first thing that does not
// fit, everything it returns is zero, and done says so.
type reader struct {
	rest   []byte
	failed bool
}

func newReader(data []byte) *reader {
	r := &reader{rest: data}
	if r.byte() != stateFormat {
		r.failed = true
	}
	return r
}

func (r *reader) byte() byte {
	if r.failed || len(r.rest) == 0 {
		r.failed = true
		return 0
	}
	b := r.rest[0]
	r.rest = r.rest[1:]
	return b
}

func (r *reader) uint() uint64 {
	n, size := binary.Uvarint(r.rest)
	if r.failed || size <= 0 {
		r.failed = true
		return 0
	}
	r.rest = r.rest[size:]
	return n
}

// count is a number of things that take at least a byte each.
func (r *reader) count() int {
	n := r.uint()
	if n > uint64(len(r.rest)) {
		r.failed = true
		return 0
	}
	return int(n)
}

func (r *reader) text() string {
	n := r.count()
	text := string(r.rest[:n])
	r.rest = r.rest[n:]
	return text
}

func (r *reader) time() time.Time {
	n, size := binary.Varint(r.rest)
	if r.failed || size <= 0 {
		r.failed = true
		return time.Time{}
	}
	r.rest = r.rest[size:]
	if n == 0 {
		return time.Time{}
	}
	return time.Unix(0, n).UTC()
}

// done reports what did not fit. The bytes were authenticated, so it is a
// newer format or our mistake; serving it would be a guess either way.
func (r *reader) done(part string) error {
	if r.failed || len(r.rest) > 0 {
		return fmt.Errorf("decoding the %s of a secret: %w", part, secret.ErrTampered)
	}
	return nil
}
