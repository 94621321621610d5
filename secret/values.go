// SPDX-License-Identifier: Apache-2.0

package secret

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"slices"
	"sort"
)

// Bounds of one version's values.
const (
	MaxKeys       = 128     // of a secret
	MaxValueBytes = 1 << 20 // of all keys and values together
)

const redacted = "[redacted]"

// Values is the small map of key → value bytes that one version holds. It is
// immutable but for Wipe, and may be copied; copies share their bytes.
//
// It never prints. What fmt finds in an unexported field, it prints by
// reflection, without a call of Format. There it shows the address of a pointer
// to a pointer under every verb; of a pointer to a struct it shows the struct,
// when the verb is none for pointers, such as %s.
type Values struct{ v **values }

type values struct {
	buffer []byte // all values, one after the other
	keys   []Key  // sorted
	ends   []int  // ends[i] is where the value of keys[i] ends in buffer
}

// held returns what v holds; the zero Values hold nothing.
func (v Values) held() *values {
	if v.v == nil {
		return &values{}
	}
	return *v.v
}

// NewValues copies the given map. It returns ErrInvalid for a malformed or
// missing key, and ErrTooLarge for more than 128 keys or 1 MiB in all.
func NewValues(from map[string][]byte) (Values, error) {
	if len(from) == 0 {
		return Values{}, fmt.Errorf("%w secret: it needs at least one key", ErrInvalid)
	}
	if len(from) > MaxKeys {
		return Values{}, fmt.Errorf("%w: %d keys, at most %d are allowed", ErrTooLarge, len(from), MaxKeys)
	}
	names := make([]string, 0, len(from))
	size, total := 0, 0
	for name, value := range from {
		names = append(names, name)
		size += len(value)
		total += len(name) + len(value)
	}
	if total > MaxValueBytes {
		return Values{}, fmt.Errorf("%w: %d bytes of keys and values, at most %d are allowed", ErrTooLarge, total, MaxValueBytes)
	}
	sort.Strings(names)
	v := &values{buffer: make([]byte, 0, size)}
	for _, name := range names {
		key, err := ParseKey(name)
		if err != nil {
			clear(v.buffer)
			return Values{}, err
		}
		v.buffer = append(v.buffer, from[name]...)
		v.keys = append(v.keys, key)
		v.ends = append(v.ends, len(v.buffer))
	}
	return Values{&v}, nil
}

// Len returns the number of keys; 0 for the zero Values.
func (v Values) Len() int {
	return len(v.held().keys)
}

// Get returns the bytes of one key, which stay owned by v, and whether it is there.
func (v Values) Get(key Key) ([]byte, bool) {
	held := v.held()
	i, found := slices.BinarySearchFunc(held.keys, key, func(a, b Key) int { return compareText(a.text, b.text) })
	if !found {
		return nil, false
	}
	return held.at(i), true
}

// All yields the keys in byte order, each with its bytes, which stay owned by v.
func (v Values) All() iter.Seq2[Key, []byte] {
	return func(yield func(Key, []byte) bool) {
		held := v.held()
		for i, key := range held.keys {
			if !yield(key, held.at(i)) {
				return
			}
		}
	}
}

// Wipe clears the bytes. Every copy of v is empty of meaning afterwards.
func (v Values) Wipe() {
	clear(v.held().buffer)
}

// Sizes returns the keys in byte order with the size of each value: the part
// of Values that is not secret.
func (v Values) Sizes() []KeySize {
	sizes := make([]KeySize, 0, v.Len())
	for key, value := range v.All() {
		sizes = append(sizes, KeySize{Key: key, Size: len(value)})
	}
	return sizes
}

// KeySize is a key and the size of its value in bytes.
type KeySize struct {
	Key  Key
	Size int
}

func (v *values) at(i int) []byte {
	start := 0
	if i > 0 {
		start = v.ends[i-1]
	}
	return v.buffer[start:v.ends[i]:v.ends[i]]
}

// AppendEncoded appends the persisted form of v to buffer:
//
//	count  uvarint
//	count × { key length uvarint, key, value length uvarint }
//	values, one after the other, in the order of their keys
//
// Keys are in byte order, so equal values encode equally.
func (v Values) AppendEncoded(buffer []byte) []byte {
	buffer = binary.AppendUvarint(buffer, uint64(v.Len()))
	for key, value := range v.All() {
		buffer = binary.AppendUvarint(buffer, uint64(len(key.text)))
		buffer = append(buffer, key.text...)
		buffer = binary.AppendUvarint(buffer, uint64(len(value)))
	}
	return append(buffer, v.held().buffer...)
}

// EncodedSize is an upper bound of the bytes that AppendEncoded adds, so that
// encoding into a buffer of that capacity leaves no copy behind.
func (v Values) EncodedSize() int {
	size := binary.MaxVarintLen64
	for key, value := range v.All() {
		size += 2*binary.MaxVarintLen64 + len(key.text) + len(value)
	}
	return size
}

// DecodeValues takes over data, the form that AppendEncoded wrote: the result
// refers to it, and Wipe clears its values. The error is ErrTampered.
func DecodeValues(data []byte) (Values, error) {
	rest := data
	count, ok := takeUvarint(&rest)
	if !ok || count > MaxKeys {
		return Values{}, fmt.Errorf("decoding values: key count: %w", ErrTampered)
	}
	v := &values{keys: make([]Key, 0, count), ends: make([]int, 0, count)}
	end, names := 0, 0
	for range count {
		length, ok := takeUvarint(&rest)
		if !ok || length > uint64(len(rest)) {
			return Values{}, fmt.Errorf("decoding values: key length: %w", ErrTampered)
		}
		key, err := ParseKey(string(rest[:length]))
		if err != nil || len(v.keys) > 0 && v.keys[len(v.keys)-1].text >= key.text {
			return Values{}, fmt.Errorf("decoding values: key: %w", ErrTampered)
		}
		rest = rest[length:]
		size, ok := takeUvarint(&rest)
		if !ok || size > MaxValueBytes {
			return Values{}, fmt.Errorf("decoding values: value length: %w", ErrTampered)
		}
		end, names = end+int(size), names+int(length)
		v.keys, v.ends = append(v.keys, key), append(v.ends, end)
	}
	if end != len(rest) {
		return Values{}, fmt.Errorf("decoding values: %d bytes of values where %d are named: %w", len(rest), end, ErrTampered)
	}
	if end+names > MaxValueBytes {
		return Values{}, fmt.Errorf("decoding values: %d bytes of keys and values: %w", end+names, ErrTampered)
	}
	v.buffer = rest
	return Values{&v}, nil
}

// takeUvarint reads the shortest form only, so that one value has one encoding.
func takeUvarint(rest *[]byte) (uint64, bool) {
	n, size := binary.Uvarint(*rest)
	if size <= 0 || size > 1 && (*rest)[size-1] == 0 {
		return 0, false
	}
	*rest = (*rest)[size:]
	return n, true
}

func compareText(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// String, Format, LogValue and MarshalJSON hide the values.
func (v Values) String() string { return redacted }

// Format hides the values from every verb.
func (v Values) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, redacted) }

// LogValue hides the values from slog.
func (v Values) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalJSON hides the values from encoding/json.
func (v Values) MarshalJSON() ([]byte, error) { return []byte(`"` + redacted + `"`), nil }
