// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/keyhole-agent/keyhole/secret"
)

// lockRecord is a lock record as persisted, numbers big-endian:
//
//	"khlock", 6 | format = 1, 2 | store's ID, 16
//	count of slots, 1 | count × slot
//	sealed keyring's length, 4 | sealed keyring
//	count × authentication tag, 32
//	checksum, 32
//
// The sealed keyring is AES-256-GCM, by HKDF-SHA256(root key, salt store's ID,
// info "keyhole-keyring-1"), with everything before its length as associated
// data. So the public keys, which later root keys are sealed to, are
// authenticated with it.
//
// Each tag is HMAC-SHA256, by the authentication key of the slot in the same
// place, of everything before the tags. Anybody can seal a root key of their own
// to a public key, and then a keyring with it; this is what they cannot make.
//
// The checksum is SHA-256 of everything before it. It proves nothing, and tells
// a damaged record from a wrong password.
//
// A later format may change all but the first 8 bytes.
type lockRecord struct {
	store  [16]byte
	slots  []*slot
	sealed []byte
	tags   [][]byte

	associated    []byte // of the sealed keyring
	authenticated []byte // by the tags
}

const (
	lockMagic      = "khlock"
	lockFormat     = 1
	maxSlots       = 16
	keyringPurpose = "keyhole-keyring-1"
)

// Create makes the keys of a new store, and a lock record that any of the given
// slots opens, 1 to 16 of them with different names. The first slot's Created
// is also the time of the first term key.
//
// The lock record is to be stored; without it nothing sealed with the keyring
// can ever be opened. Errors: ErrInvalid, ErrUnavailable for lack of memory.
func Create(storeID [16]byte, slots ...NewSlot) (_ *Keyring, lock []byte, err error) {
	if err := checkNewSlots(slots); err != nil {
		return nil, nil, err
	}
	ids := newSlotIDs(len(slots))
	keys, err := newKeys(slots[0].Created.Unix(), ids)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, keys.arena.close())
		}
	}()
	for i, from := range slots {
		s, err := newSlot(storeID, ids[i], from, keys.shared[i].key)
		if err != nil {
			return nil, nil, err
		}
		keys.slots = append(keys.slots, s)
	}
	lock, err = keys.sealLock(storeID)
	if err != nil {
		return nil, nil, err
	}
	k, err := newKeyring(storeID, keys)
	if err != nil {
		return nil, nil, err
	}
	return k, lock, nil
}

func checkNewSlots(slots []NewSlot) error {
	if len(slots) < 1 || len(slots) > maxSlots {
		return fmt.Errorf("%w: %d slots; 1 to %d are needed", secret.ErrInvalid, len(slots), maxSlots)
	}
	names := map[string]bool{}
	for _, s := range slots {
		if names[s.Name] {
			return fmt.Errorf("%w: two slots are named %q", secret.ErrInvalid, s.Name)
		}
		names[s.Name] = true
	}
	return nil
}

// Unlock opens a lock record with a password or a keyfile.
//
// Errors: ErrDenied when the opener fits no slot; ErrInvalid when it is empty; ErrTampered when the record is
// damaged, belongs to another store, or was not made by a holder of its slots;
// ErrNewerFormat; ErrUnavailable for lack of memory. A record that was changed
// with care may answer ErrDenied, too.
func Unlock(storeID [16]byte, lock []byte, opener Opener) (*Keyring, error) {
	if opener == nil {
		return nil, fmt.Errorf("unlocking: %w: neither a password nor a keyfile was given", secret.ErrInvalid)
	}
	l, err := readLock(bytes.Clone(lock))
	if err != nil {
		return nil, err
	}
	if l.store != storeID {
		return nil, fmt.Errorf("unlocking: the lock record is of store %x, and this is %x: %w", l.store, storeID, secret.ErrTampered)
	}
	tried := 0
	for i, s := range l.slots {
		if s.kind != opener.slotKind() {
			continue
		}
		tried++
		authentication, private, err := s.openSecret(storeID, opener)
		if errors.Is(err, secret.ErrDenied) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("unlocking: %w", err)
		}
		defer clear(authentication)
		defer clear(private)
		return l.open(i, authentication, private)
	}
	if tried == 0 {
		return nil, fmt.Errorf("unlocking: %w: the store has no %v slot; it has %s", secret.ErrDenied, opener.slotKind(), l.slotNames())
	}
	return nil, fmt.Errorf("unlocking: %w: the %v fits none of the slots %s", secret.ErrDenied, opener.slotKind(), l.slotNames())
}

// Slots lists the slots of a lock record. Nothing is proven of them until the
// record is unlocked. The error is ErrTampered or ErrNewerFormat.
func Slots(lock []byte) ([]SlotInfo, error) {
	l, err := readLock(lock)
	if err != nil {
		return nil, err
	}
	infos := make([]SlotInfo, 0, len(l.slots))
	for _, s := range l.slots {
		infos = append(infos, s.info())
	}
	return infos, nil
}

// open opens the keyring through the slot in place i.
func (l *lockRecord) open(i int, authentication, private []byte) (_ *Keyring, err error) {
	s := l.slots[i]
	if !hmac.Equal(l.tags[i], lockTag(authentication, l.authenticated)) {
		return nil, fmt.Errorf("unlocking with slot %q: the lock record was not made by its holder: %w", s.name, secret.ErrTampered)
	}
	root, err := s.openRoot(l.store, private)
	if err != nil {
		return nil, fmt.Errorf("unlocking: %w", err)
	}
	defer clear(root)
	size := len(l.sealed) - overhead
	a, err := newArena(keySize + max(0, size))
	if err != nil {
		return nil, err
	}
	copy(a.bytes, root)
	keys, err := l.openKeys(a, size)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("unlocking with slot %q: %w", s.name, err), a.close())
	}
	k, err := newKeyring(l.store, keys)
	if err != nil {
		return nil, errors.Join(err, a.close())
	}
	return k, nil
}

// openKeys opens the sealed keyring into the arena, which begins with the root key.
func (l *lockRecord) openKeys(a *arena, size int) (*keys, error) {
	aead, err := keyringCipher(l.store, a.bytes[:keySize])
	if err != nil {
		return nil, err
	}
	if _, err := aead.Open(a.bytes[keySize:keySize], nil, l.sealed, l.associated); err != nil {
		return nil, fmt.Errorf("opening the keyring: %w", secret.ErrTampered)
	}
	keys, err := decodeKeys(a, size)
	if err != nil {
		return nil, err
	}
	keys.slots = l.slots
	for i, s := range keys.slots {
		if len(keys.shared) != len(keys.slots) || keys.shared[i].id != s.id {
			return nil, fmt.Errorf("reading the keyring: it is of other slots: %w", secret.ErrTampered)
		}
		// The keyring knows the other slots' keys, too: a record that one of them
		// would refuse is found now, and not when it is needed.
		if !hmac.Equal(l.tags[i], lockTag(keys.shared[i].key, l.authenticated)) {
			return nil, fmt.Errorf("reading the lock record: the tag of slot %q is wrong: %w", s.name, secret.ErrTampered)
		}
	}
	return keys, nil
}

func (l *lockRecord) slotNames() string {
	names := make([]string, 0, len(l.slots))
	for _, s := range l.slots {
		names = append(names, fmt.Sprintf("%q (%v)", s.name, s.kind))
	}
	return strings.Join(names, ", ")
}

// sealLock returns the lock record of the keys: the root key, sealed anew to
// every slot, and the keyring. It needs no slot to be opened.
func (k *keys) sealLock(store [16]byte) ([]byte, error) {
	record := binary.BigEndian.AppendUint16([]byte(lockMagic), lockFormat)
	record = append(record, store[:]...)
	record = append(record, byte(len(k.slots)))
	for _, s := range k.slots {
		if err := s.sealRoot(store, k.root); err != nil {
			return nil, err
		}
		record = s.append(record)
	}
	aead, err := keyringCipher(store, k.root)
	if err != nil {
		return nil, err
	}
	sealed := aead.Seal(nil, nil, k.plain, record)
	record = binary.BigEndian.AppendUint32(record, uint32(len(sealed)))
	record = append(record, sealed...)
	authenticated := record
	for _, s := range k.shared {
		record = append(record, lockTag(s.key, authenticated)...)
	}
	checksum := sha256.Sum256(record)
	return append(record, checksum[:]...), nil
}

// readLock takes a lock record apart, without believing it.
func readLock(record []byte) (*lockRecord, error) {
	r := reader{rest: record}
	if magic := r.take(len(lockMagic)); string(magic) != lockMagic {
		return nil, fmt.Errorf("reading the lock record: it is none: %w", secret.ErrTampered)
	}
	if format := r.uint16(); format > lockFormat {
		return nil, fmt.Errorf("reading the lock record: it has format %d, and this program knows up to %d: %w", format, lockFormat, secret.ErrNewerFormat)
	} else if format != lockFormat {
		return nil, fmt.Errorf("reading the lock record: it has format %d: %w", format, secret.ErrTampered)
	}
	split := len(record) - sha256.Size
	if split < 0 || sha256.Sum256(record[:split]) != [sha256.Size]byte(record[split:]) {
		return nil, fmt.Errorf("reading the lock record: its checksum is wrong: %w", secret.ErrTampered)
	}
	l := &lockRecord{store: [16]byte(r.takeOrZero(16))}
	count := int(r.uint8())
	ids, names := map[[16]byte]bool{}, map[string]bool{}
	for range count {
		s := readSlot(&r)
		r.failed = r.failed || secret.CheckSegment(s.name) != nil || ids[s.id] || names[s.name]
		ids[s.id], names[s.name] = true, true
		l.slots = append(l.slots, s)
	}
	l.associated = record[:len(record)-len(r.rest)]
	l.sealed = r.take(int(r.uint32()))
	l.authenticated = record[:len(record)-len(r.rest)]
	for range count {
		l.tags = append(l.tags, r.take(sha256.Size))
	}
	r.take(sha256.Size)
	if r.failed || len(r.rest) > 0 || count < 1 || count > maxSlots || len(l.sealed) < overhead {
		return nil, fmt.Errorf("reading the lock record: it is cut or malformed: %w", secret.ErrTampered)
	}
	return l, nil
}

func lockTag(key, authenticated []byte) []byte {
	mac := hmac.New(sha256.New, key)
	mac.Write(authenticated)
	return mac.Sum(nil)
}
