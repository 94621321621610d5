// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/hpke"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
)

// SlotKind is a way to unlock. The numbers are persisted.
type SlotKind uint8

// The kinds of slots. Others may be in a lock record that a newer version wrote.
const (
	SlotKeyfile  SlotKind = 1 // opened by a file with a random key
	SlotPassword SlotKind = 2 // opened by a password
)

// String returns the kind's name: "keyfile", "password", or its number.
func (k SlotKind) String() string {
	switch k {
	case SlotKeyfile:
		return "keyfile"
	case SlotPassword:
		return "password"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

// Opener is what opens a slot: a Keyfile or a Password.
type Opener interface {
	slotKind() SlotKind

	// newParameters returns what a new slot stores in clear for its derivation.
	newParameters() []byte

	// deriveKEK returns the key that seals the slot's secret, for the caller to
	// clear. Parameters are as stored, by whomever: the error is ErrTampered for
	// malformed ones and ErrNewerFormat for an unknown derivation.
	deriveKEK(parameters []byte) ([]byte, error)
}

// NewSlot describes a slot to be made.
type NewSlot struct {
	Name    string    // 1 to 253 bytes, as a path's segment may be; readable without unlocking
	Created time.Time // kept in seconds
	Opener  Opener    // what will open it
}

// SlotInfo describes a slot of a lock record.
type SlotInfo struct {
	Kind    SlotKind
	ID      [16]byte // random
	Name    string
	Created time.Time // UTC, in seconds
}

// slot is one slot as persisted, numbers big-endian:
//
//	kind, 1 | ID, 16 | created, Unix seconds, 8 | name's length, 1 | name
//	KEM, 2 (RFC 9180, 7.1) | public key's length, 2 | public key
//	parameters' length, 2 | parameters, which the kind explains
//	sealed secret's length, 2 | sealed secret
//	sealed root key's length, 2 | sealed root key
//
// The sealed secret is AES-256-GCM, by the opener's key, of
//
//	authentication key, 32 | HPKE private key
//
// with everything before it as associated data, after "keyhole-slot-1" and the
// store's ID. The sealed root key is HPKE (RFC 9180) in base mode to the public
// key with HKDF-SHA256 and AES-256-GCM, encapsulated key first; its info is
// "keyhole-root-1", the store's ID and the slot's ID.
//
// Base mode says nothing of who sealed. The authentication key does: see lockRecord.
type slot struct {
	kind       SlotKind
	id         [16]byte
	created    int64
	name       string
	kem        uint16
	public     []byte
	parameters []byte
	secret     []byte
	root       []byte
}

const (
	slotFormat = "keyhole-slot-1"
	rootFormat = "keyhole-root-1"
)

// slotKEM is the KEM of new slots; package doc says why this one.
func slotKEM() hpke.KEM { return hpke.MLKEM768X25519() }

// newSlot makes the key pair of a slot and seals its private half.
func newSlot(store, id [16]byte, from NewSlot, authentication []byte) (*slot, error) {
	if err := secret.CheckSegment(from.Name); err != nil {
		return nil, fmt.Errorf("making a slot: %w", err)
	}
	if from.Opener == nil {
		return nil, fmt.Errorf("%w slot %q: nothing would open it", secret.ErrInvalid, from.Name)
	}
	private, err := slotKEM().GenerateKey()
	if err != nil {
		return nil, fmt.Errorf("making the key pair of slot %q: %w", from.Name, err)
	}
	s := &slot{
		kind:       from.Opener.slotKind(),
		id:         id,
		created:    from.Created.Unix(),
		name:       from.Name,
		kem:        slotKEM().ID(),
		public:     private.PublicKey().Bytes(),
		parameters: from.Opener.newParameters(),
	}
	privateBytes, err := private.Bytes()
	if err != nil {
		return nil, fmt.Errorf("making the key pair of slot %q: %w", from.Name, err)
	}
	defer clear(privateBytes)
	plain := append(append(make([]byte, 0, keySize+len(privateBytes)), authentication...), privateBytes...)
	defer clear(plain)
	kek, err := from.Opener.deriveKEK(s.parameters)
	if err != nil {
		return nil, fmt.Errorf("making slot %q: %w", from.Name, err)
	}
	defer clear(kek)
	aead, err := newCipher(kek)
	if err != nil {
		return nil, err
	}
	s.secret = aead.Seal(nil, nil, plain, s.associated(store))
	return s, nil
}

// openSecret returns the slot's authentication key and private key, for the
// caller to clear. The error is ErrDenied when the key does not fit, or one of
// the opener.
func (s *slot) openSecret(store [16]byte, opener Opener) (authentication, private []byte, err error) {
	kek, err := opener.deriveKEK(s.parameters)
	if err != nil {
		return nil, nil, fmt.Errorf("opening slot %q: %w", s.name, err)
	}
	defer clear(kek)
	aead, err := newCipher(kek)
	if err != nil {
		return nil, nil, err
	}
	plain, err := aead.Open(nil, nil, s.secret, s.associated(store))
	if err != nil {
		return nil, nil, fmt.Errorf("opening slot %q: %w", s.name, secret.ErrDenied)
	}
	if len(plain) < keySize {
		clear(plain)
		return nil, nil, fmt.Errorf("opening slot %q: its secret is cut: %w", s.name, secret.ErrTampered)
	}
	return plain[:keySize:keySize], plain[keySize:], nil
}

// sealRoot seals a root key to the slot. Nobody who can open the slot need be
// present.
func (s *slot) sealRoot(store [16]byte, root []byte) error {
	kem, err := s.newKEM()
	if err != nil {
		return err
	}
	public, err := kem.NewPublicKey(s.public)
	if err != nil {
		return fmt.Errorf("reading the public key of slot %q: %w: %w", s.name, secret.ErrTampered, err)
	}
	s.root, err = hpke.Seal(public, hpke.HKDFSHA256(), hpke.AES256GCM(), s.rootInfo(store), root)
	if err != nil {
		return fmt.Errorf("sealing the root key to slot %q: %w", s.name, err)
	}
	return nil
}

// openRoot returns the root key, for the caller to clear. The error is
// ErrTampered, also when the public key is not that of the private one.
func (s *slot) openRoot(store [16]byte, private []byte) ([]byte, error) {
	kem, err := s.newKEM()
	if err != nil {
		return nil, err
	}
	key, err := kem.NewPrivateKey(private)
	if err != nil {
		return nil, fmt.Errorf("reading the private key of slot %q: %w: %w", s.name, secret.ErrTampered, err)
	}
	if !bytes.Equal(key.PublicKey().Bytes(), s.public) {
		return nil, fmt.Errorf("opening slot %q: its public key is another's: %w", s.name, secret.ErrTampered)
	}
	root, err := hpke.Open(key, hpke.HKDFSHA256(), hpke.AES256GCM(), s.rootInfo(store), s.root)
	if err != nil || len(root) != keySize {
		clear(root)
		return nil, fmt.Errorf("opening the root key with slot %q: %w", s.name, secret.ErrTampered)
	}
	return root, nil
}

func (s *slot) newKEM() (hpke.KEM, error) {
	if s.kem != slotKEM().ID() {
		return nil, fmt.Errorf("slot %q has a key pair of kind %#04x: %w", s.name, s.kem, secret.ErrNewerFormat)
	}
	return slotKEM(), nil
}

func (s *slot) rootInfo(store [16]byte) []byte {
	info := appendShort(nil, []byte(rootFormat))
	info = appendShort(info, store[:])
	return appendShort(info, s.id[:])
}

// associated is the associated data of the sealed secret.
func (s *slot) associated(store [16]byte) []byte {
	data := appendShort(nil, []byte(slotFormat))
	data = appendShort(data, store[:])
	return s.appendClear(data)
}

// appendClear appends what comes before the sealed secret.
func (s *slot) appendClear(buffer []byte) []byte {
	buffer = append(buffer, byte(s.kind))
	buffer = append(buffer, s.id[:]...)
	buffer = binary.BigEndian.AppendUint64(buffer, uint64(s.created))
	buffer = appendShort(buffer, []byte(s.name))
	buffer = binary.BigEndian.AppendUint16(buffer, s.kem)
	buffer = appendBytes(buffer, s.public)
	return appendBytes(buffer, s.parameters)
}

func (s *slot) append(buffer []byte) []byte {
	return appendBytes(appendBytes(s.appendClear(buffer), s.secret), s.root)
}

func readSlot(r *reader) *slot {
	return &slot{
		kind:       SlotKind(r.uint8()),
		id:         [16]byte(r.takeOrZero(16)),
		created:    int64(r.uint64()),
		name:       string(r.short()),
		kem:        r.uint16(),
		public:     r.bytes(),
		parameters: r.bytes(),
		secret:     r.bytes(),
		root:       r.bytes(),
	}
}

func (s *slot) info() SlotInfo {
	return SlotInfo{Kind: s.kind, ID: s.id, Name: s.name, Created: time.Unix(s.created, 0).UTC()}
}

// newSlotIDs returns n random IDs.
func newSlotIDs(n int) [][16]byte {
	ids := make([][16]byte, n)
	for i := range ids {
		_, _ = rand.Read(ids[i][:]) // never fails
	}
	return ids
}
