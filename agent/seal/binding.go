// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"encoding/binary"
	"fmt"

	"github.com/keyhole-agent/keyhole/secret"
)

// Kind is the kind of a sealed record. The numbers are persisted.
type Kind uint8

// The kinds of records.
const (
	KindSecret  Kind = 1 // a secret's record
	KindFolder  Kind = 2 // a folder's record
	KindVersion Kind = 3 // one version of a secret
	KindPolicy  Kind = 4
	KindAnchor  Kind = 5 // the last durable head of an audit log
	KindMeta    Kind = 6 // a fact about the store
	KindSession Kind = 7 // a break-glass session
)

// String returns the kind in words.
func (k Kind) String() string {
	names := [...]string{"", "secret", "folder", "version", "policy", "anchor", "store fact", "session"}
	if k < 1 || int(k) >= len(names) {
		return fmt.Sprintf("record of kind %d", uint8(k))
	}
	return names[k]
}

// Field is a part of a record that is sealed by itself. The numbers are persisted.
type Field uint8

// The fields of records.
const (
	fieldKey     Field = 0 // the wrapped data key
	FieldHead    Field = 1 // what the record says of itself
	FieldHistory Field = 2 // what a secret's record says of each version
	FieldPayload Field = 3 // the values of a version
)

// String returns the field in words.
func (f Field) String() string {
	names := [...]string{"data key", "head", "history", "payload"}
	if int(f) >= len(names) {
		return fmt.Sprintf("field %d", uint8(f))
	}
	return names[f]
}

// Binding says what a sealed record is about. It opens only with the Binding
// that it was sealed with. What does not apply stays zero.
type Binding struct {
	Kind    Kind
	Lookup  [32]byte       // where the record lies: what Locate or LocateName answered
	ID      secret.ID      // of the secret
	Version secret.Version // of the secret
}

// String names the record for an error: its kind, and whichever of ID, version
// and the first half of the lookup key are set.
func (b Binding) String() string {
	text := b.Kind.String()
	if b.Version != 0 {
		text += fmt.Sprintf(" %d", uint64(b.Version))
	}
	if b.ID != (secret.ID{}) {
		text += " of " + b.ID.String()
	}
	if b.Lookup != [32]byte{} {
		text += fmt.Sprintf(" at %x", b.Lookup[:16])
	}
	return text
}

// The format of wrapped keys and sealed fields. It follows from the format of
// the lock record, so records do not repeat it; authentication does.
const recordFormat = "keyhole-record-1"

// maxAssociated is the size of the associated data with all of its parts.
const maxAssociated = 1 + len(recordFormat) + 1 + 16 + 1 + 1 + 1 + 32 + 1 + 16 + 1 + 8 + 1 + 1 + 1 + 4

// appendAssociated appends the associated data of a field to buffer. Each part
// has one byte of length before it; numbers are big-endian:
//
//	"keyhole-record-1" | store, 16 | kind, 1 | lookup key, 32 | secret ID, 16 | version, 8 | field, 1
func (b *Binding) appendAssociated(buffer []byte, store *[16]byte, field Field) []byte {
	buffer = append(buffer, byte(len(recordFormat)))
	buffer = append(buffer, recordFormat...)
	buffer = append(buffer, 16)
	buffer = append(buffer, store[:]...)
	buffer = append(buffer, 1, byte(b.Kind), 32)
	buffer = append(buffer, b.Lookup[:]...)
	buffer = append(buffer, 16)
	buffer = append(buffer, b.ID[:]...)
	buffer = append(buffer, 8)
	buffer = binary.BigEndian.AppendUint64(buffer, uint64(b.Version))
	return append(buffer, 1, byte(field))
}

// appendTerm appends the part that only a wrapped key has, the number of the
// term key that wraps it. A new term then rewraps keys and leaves fields alone.
func appendTerm(buffer []byte, term uint32) []byte {
	return binary.BigEndian.AppendUint32(append(buffer, 4), term)
}
