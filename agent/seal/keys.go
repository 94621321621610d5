// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/keyhole-agent/keyhole/secret"
)

// keys is everything a lock record protects. All slices lie in the arena, which
// holds the root key and then the keyring as it is sealed:
//
//	index key, 32 | audit key, 32 | active term, 4
//	count of terms, 2 | count × { number, 4 | created, Unix seconds, 8 | term key, 32 }
//	count of slots, 1 | count × { slot's ID, 16 | authentication key, 32 }
//
// Numbers are big-endian. Terms ascend by number from 1; the active one is
// among them. Slots come in the order of the lock record.
type keys struct {
	arena  *arena
	root   []byte
	plain  []byte // the keyring as above
	index  []byte
	audit  []byte
	active uint32
	terms  []term
	shared []slotKey
	slots  []*slot // as in the lock record; not in the arena
}

// term is one term key.
type term struct {
	number  uint32
	created int64 // Unix seconds
	key     []byte
}

// slotKey is what a slot and the keyring both know. With it an unlocked keyring
// makes lock records that the slot accepts, and nobody else can.
type slotKey struct {
	id  [16]byte
	key []byte
}

const (
	keysFixed   = 2*keySize + 4 + 2 + 1 // of an encoded keyring, without terms and slots
	termSize    = 4 + 8 + keySize
	slotKeySize = 16 + keySize
)

// newKeys makes a random root key, and a random keyring with one term and an
// authentication key for each of the given slots.
func newKeys(created int64, slots [][16]byte) (*keys, error) {
	size := keysFixed + termSize + len(slots)*slotKeySize
	a, err := newArena(keySize + size)
	if err != nil {
		return nil, err
	}
	// Everything that is to be a key is random already; the rest is written over it.
	_, _ = rand.Read(a.bytes[:keySize+size]) // never fails
	plain := a.bytes[keySize : keySize : keySize+size]
	plain = plain[:2*keySize]
	plain = binary.BigEndian.AppendUint32(plain, 1)
	plain = binary.BigEndian.AppendUint16(plain, 1)
	plain = binary.BigEndian.AppendUint32(plain, 1)
	plain = binary.BigEndian.AppendUint64(plain, uint64(created))
	plain = plain[:len(plain)+keySize]
	plain = append(plain, byte(len(slots)))
	for _, id := range slots {
		plain = append(plain, id[:]...)
		plain = plain[:len(plain)+keySize]
	}
	k, err := decodeKeys(a, size)
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return k, nil
}

// decodeKeys reads the root key and the keyring of the given size from the
// arena, which the result takes over. The error is ErrTampered.
func decodeKeys(a *arena, size int) (*keys, error) {
	k := &keys{arena: a, root: a.bytes[:keySize:keySize], plain: a.bytes[keySize : keySize+size : keySize+size]}
	r := reader{rest: k.plain}
	k.index = r.take(keySize)
	k.audit = r.take(keySize)
	k.active = r.uint32()
	active := false
	for range r.uint16() {
		t := term{number: r.uint32(), created: int64(r.uint64()), key: r.take(keySize)}
		if r.failed || t.number == 0 || len(k.terms) > 0 && k.terms[len(k.terms)-1].number >= t.number {
			r.failed = true
			break
		}
		active = active || t.number == k.active
		k.terms = append(k.terms, t)
	}
	for range r.uint8() {
		s := slotKey{id: [16]byte(r.takeOrZero(16)), key: r.take(keySize)}
		if r.failed {
			break
		}
		k.shared = append(k.shared, s)
	}
	if r.failed || len(r.rest) > 0 || !active {
		return nil, fmt.Errorf("reading the keyring: %w", secret.ErrTampered)
	}
	return k, nil
}

// deriveKey returns 32 bytes of HKDF-SHA256 (RFC 5869), for the caller to clear.
func deriveKey(from, salt []byte, purpose string) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, from, salt, purpose, keySize)
	if err != nil {
		return nil, fmt.Errorf("deriving a key: %w", err)
	}
	return key, nil
}

// keyringCipher returns what seals the keyring under a root key.
func keyringCipher(store [16]byte, root []byte) (cipher.AEAD, error) {
	key, err := deriveKey(root, store[:], keyringPurpose)
	if err != nil {
		return nil, err
	}
	defer clear(key)
	return newCipher(key)
}
