// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"fmt"

	"github.com/keyhole-agent/keyhole/secret"
)

const (
	keySize  = 32 // of every symmetric key
	overhead = 28 // of AES-GCM: a nonce of 12 bytes before, a tag of 16 after
)

// WrappedSize is the size of a wrapped data key in bytes:
//
//	term, 4, big-endian | nonce, 12 | data key, 32, encrypted | tag, 16
const WrappedSize = 4 + keySize + overhead

// Overhead is what a sealed field is longer than its plaintext, in bytes:
//
//	nonce, 12 | plaintext, encrypted | tag, 16
const Overhead = overhead

// DataKey seals the fields of one record. It may be used concurrently, but for
// Wipe; copies are the same key. It outlives the Close of its Keyring.
type DataKey struct {
	hidden
	k *dataKey
}

type dataKey struct {
	aead  cipher.AEAD // nil once wiped
	store [16]byte
}

// newCipher returns AES-256-GCM with random nonces, each prepended to its
// ciphertext. The only error is a key of another length than 32 bytes.
func newCipher(key []byte) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("preparing a key: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("preparing a key: %w", err)
	}
	return aead, nil
}

// NewDataKey makes a random data key for the record that b is about, and
// returns it with its wrapped form, WrappedSize bytes to store beside the
// record. The error is ErrSealed.
func (k *Keyring) NewDataKey(b Binding) (DataKey, []byte, error) {
	keys := k.open.Load()
	if keys == nil {
		return DataKey{}, nil, fmt.Errorf("making a data key for %v: %w", b, secret.ErrSealed)
	}
	buffer := keys.buffers.Get().(*buffer)
	defer keys.buffers.Put(buffer)
	defer clear(buffer.key[:])
	_, _ = rand.Read(buffer.key[:]) // never fails
	aead, err := newCipher(buffer.key[:])
	if err != nil {
		return DataKey{}, nil, err
	}
	associated := appendTerm(b.appendAssociated(buffer.associated[:0], &keys.store, fieldKey), keys.active)
	wrapped := binary.BigEndian.AppendUint32(make([]byte, 0, WrappedSize), keys.active)
	wrapped = keys.terms[keys.active].Seal(wrapped, nil, buffer.key[:], associated)
	return DataKey{k: &dataKey{aead: aead, store: keys.store}}, wrapped, nil
}

// OpenDataKey opens a wrapped data key. The error is ErrSealed; or ErrTampered
// when wrapped was changed, was made for another Binding or store, or names a
// term key that is not in the keyring.
func (k *Keyring) OpenDataKey(b Binding, wrapped []byte) (DataKey, error) {
	keys := k.open.Load()
	if keys == nil {
		return DataKey{}, fmt.Errorf("opening the data key of %v: %w", b, secret.ErrSealed)
	}
	if len(wrapped) != WrappedSize {
		return DataKey{}, fmt.Errorf("opening the data key of %v: it has %d bytes instead of %d: %w", b, len(wrapped), WrappedSize, secret.ErrTampered)
	}
	term := binary.BigEndian.Uint32(wrapped)
	wrapping, known := keys.terms[term]
	if !known {
		return DataKey{}, fmt.Errorf("opening the data key of %v: no term key %d in the keyring: %w", b, term, secret.ErrTampered)
	}
	buffer := keys.buffers.Get().(*buffer)
	defer keys.buffers.Put(buffer)
	defer clear(buffer.key[:])
	associated := appendTerm(b.appendAssociated(buffer.associated[:0], &keys.store, fieldKey), term)
	if _, err := wrapping.Open(buffer.key[:0], nil, wrapped[4:], associated); err != nil {
		return DataKey{}, fmt.Errorf("opening the data key of %v: %w", b, secret.ErrTampered)
	}
	aead, err := newCipher(buffer.key[:])
	if err != nil {
		return DataKey{}, err
	}
	return DataKey{k: &dataKey{aead: aead, store: keys.store}}, nil
}

// Seal encrypts one field of the record that b is about, which must be the
// Binding of the key. The result is Overhead bytes longer than plaintext, which
// stays the caller's to clear. The error is ErrSealed, after Wipe. A key must
// not seal more than 2^32 times.
func (d DataKey) Seal(b Binding, field Field, plaintext []byte) ([]byte, error) {
	if d.k == nil || d.k.aead == nil {
		return nil, fmt.Errorf("sealing the %v of %v: its key was wiped: %w", field, b, secret.ErrSealed)
	}
	associated := b.appendAssociated(make([]byte, 0, maxAssociated), &d.k.store, field)
	return d.k.aead.Seal(make([]byte, 0, len(plaintext)+overhead), nil, plaintext, associated), nil
}

// Open decrypts one field of the record that b is about. The plaintext is the
// caller's to clear. The error is ErrTampered when ciphertext was changed or
// was sealed for another Binding, field or store; ErrSealed after Wipe.
func (d DataKey) Open(b Binding, field Field, ciphertext []byte) ([]byte, error) {
	if d.k == nil || d.k.aead == nil {
		return nil, fmt.Errorf("opening the %v of %v: its key was wiped: %w", field, b, secret.ErrSealed)
	}
	associated := b.appendAssociated(make([]byte, 0, maxAssociated), &d.k.store, field)
	plaintext, err := d.k.aead.Open(make([]byte, 0, max(0, len(ciphertext)-overhead)), nil, ciphertext, associated)
	if err != nil {
		return nil, fmt.Errorf("opening the %v of %v: %w", field, b, secret.ErrTampered)
	}
	return plaintext, nil
}

// Wipe forgets the key, in every copy of d. Nothing may be sealing or opening
// with it. Its expanded form stays in the heap until the collector reuses it.
func (d DataKey) Wipe() {
	if d.k != nil {
		d.k.aead = nil
	}
}
