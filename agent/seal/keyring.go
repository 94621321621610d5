// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"
	"sync"
	"sync/atomic"

	"github.com/keyhole-agent/keyhole/secret"
)

// Keyring is the unlocked keys of one store. All methods may be called
// concurrently, Close included.
type Keyring struct {
	hidden
	store [16]byte
	weak  error
	open  atomic.Pointer[openKeys] // nil once closed

	mu   sync.Mutex
	keys *keys // nil once closed
}

// openKeys is what the frequent operations need, ready for use, so that they
// take no lock and touch no memory that Close gives back.
type openKeys struct {
	store   [16]byte
	active  uint32
	terms   map[uint32]cipher.AEAD
	index   sync.Pool // of *locator
	buffers sync.Pool // of *buffer
}

// buffer saves the frequent operations their allocations. Its key is cleared
// before it goes back into the pool.
type buffer struct {
	key        [keySize]byte
	associated [maxAssociated]byte
}

// locator is an HMAC-SHA256 with the index key, and room for one computation.
type locator struct {
	mac   hash.Hash
	input []byte
	sum   [sha256.Size]byte
}

// newKeyring takes over keys.
func newKeyring(store [16]byte, keys *keys) (*Keyring, error) {
	open := &openKeys{store: store, active: keys.active, terms: make(map[uint32]cipher.AEAD, len(keys.terms))}
	for _, term := range keys.terms {
		aead, err := newCipher(term.key)
		if err != nil {
			return nil, err
		}
		open.terms[term.number] = aead
	}
	index := bytes.Clone(keys.index)
	open.index.New = func() any { return &locator{mac: hmac.New(sha256.New, index)} }
	open.buffers.New = func() any { return new(buffer) }
	k := &Keyring{store: store, weak: keys.arena.weak, keys: keys}
	k.open.Store(open)
	return k, nil
}

// Close clears the keys. Afterwards every method that returns an error answers
// ErrSealed. Calling it again does nothing.
func (k *Keyring) Close() error {
	k.open.Store(nil)
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		return nil
	}
	keys := k.keys
	k.keys = nil
	return keys.arena.close()
}

// Err returns ErrSealed after Close, and nil before.
func (k *Keyring) Err() error {
	if k.open.Load() == nil {
		return fmt.Errorf("the keyring is closed: %w", secret.ErrSealed)
	}
	return nil
}

// Protection returns nil when the keys' memory is protected as the package
// promises. Otherwise it says what is missing and what the operator can do; the
// keyring works all the same.
func (k *Keyring) Protection() error { return k.weak }

// StoreID returns the ID of the store that the keyring belongs to.
func (k *Keyring) StoreID() [16]byte { return k.store }

// Term returns the number of the term key that wraps new data keys, from 1 up;
// 0 after Close.
func (k *Keyring) Term() uint32 {
	keys := k.open.Load()
	if keys == nil {
		return 0
	}
	return keys.active
}

// AuditKey returns a copy of the key of the audit log, 32 bytes, for the caller
// to clear; nil after Close.
func (k *Keyring) AuditKey() []byte {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.keys == nil {
		return nil
	}
	return bytes.Clone(k.keys.audit)
}

// The first byte of what a lookup key is computed from.
const (
	locatePath = 0
	locateName = 1
)

// Locate returns the lookup key of a path, the root included. It hides the
// path from whoever does not hold the keyring:
//
//	HMAC-SHA256(index key, 0, 1 byte | path)
//
// After Close it returns zeros, which are the lookup key of nothing: whatever
// follows fails with ErrSealed or finds nothing, and Err tells.
func (k *Keyring) Locate(path secret.Path) [32]byte {
	return k.locate(locatePath, "", path.String())
}

// LocateName returns the lookup key of another named record, such as a policy.
// Equal names of different kinds have different ones, and none is a path's:
//
//	HMAC-SHA256(index key, 1, 1 byte | length of kind, 4 bytes, big-endian | kind | name)
//
// After Close it returns zeros, like Locate.
func (k *Keyring) LocateName(kind, name string) [32]byte {
	return k.locate(locateName, kind, name)
}

func (k *Keyring) locate(domain byte, kind, name string) (key [32]byte) {
	keys := k.open.Load()
	if keys == nil {
		return key
	}
	l := keys.index.Get().(*locator)
	defer keys.index.Put(l)
	l.input = append(l.input[:0], domain)
	if domain == locateName {
		l.input = binary.BigEndian.AppendUint32(l.input, uint32(len(kind)))
		l.input = append(l.input, kind...)
	}
	l.input = append(l.input, name...)
	l.mac.Reset()
	l.mac.Write(l.input)
	l.mac.Sum(l.sum[:0])
	return l.sum
}
