// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"path/filepath"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
)

var testStore = [16]byte{'s'}

func testKeyfile(t testing.TB) Keyfile {
	t.Helper()
	key, err := NewKeyfile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func testSlots(keyfile Keyfile) []NewSlot {
	created := time.Unix(1_800_000_000, 0)
	return []NewSlot{
		{Name: "machine", Created: created, Opener: keyfile},
		{Name: "operator", Created: created, Opener: CheapPassword("correct horse")},
	}
}

func testCreate(t testing.TB, slots ...NewSlot) (*Keyring, []byte) {
	t.Helper()
	k, lock, err := Create(testStore, slots...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k, lock
}

func testUnlock(t testing.TB, lock []byte, opener Opener) *Keyring {
	t.Helper()
	k, err := Unlock(testStore, lock, opener)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func wantIs(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

func testRead(t *testing.T, lock []byte) *lockRecord {
	t.Helper()
	l, err := readLock(bytes.Clone(lock))
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// encode writes a record as it stands, with a right checksum.
func (l *lockRecord) encode() []byte {
	record := binary.BigEndian.AppendUint16([]byte(lockMagic), lockFormat)
	record = append(record, l.store[:]...)
	record = append(record, byte(len(l.slots)))
	for _, s := range l.slots {
		record = s.append(record)
	}
	record = binary.BigEndian.AppendUint32(record, uint32(len(l.sealed)))
	record = append(record, l.sealed...)
	for _, tag := range l.tags {
		record = append(record, tag...)
	}
	sum := sha256.Sum256(record)
	return append(record, sum[:]...)
}

// Whoever can write the store knows the public keys, and can seal a root key
// and a keyring of their own to them. If that opened, what is written later
// would be theirs to read.
func TestAKeyringOfAStrangersMakingIsRefused(t *testing.T) {
	keyfile := testKeyfile(t)
	_, lock := testCreate(t, testSlots(keyfile)...)
	theirs := testRead(t, lock)
	var ids [][16]byte
	for _, s := range theirs.slots {
		ids = append(ids, s.id)
	}
	keys, err := newKeys(0, ids)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = keys.arena.close() }()
	keys.slots = theirs.slots
	forged, err := keys.sealLock(testStore)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range testSlots(keyfile) {
		_, err = Unlock(testStore, forged, slot.Opener)
		wantIs(t, err, secret.ErrTampered)
	}
}

func TestASwappedPublicKeyIsFoundAtUnlock(t *testing.T) {
	keyfile := testKeyfile(t)
	k, lock := testCreate(t, testSlots(keyfile)...)
	swap := func(l *lockRecord, i int) {
		private, err := slotKEM().GenerateKey()
		if err != nil {
			t.Fatal(err)
		}
		l.slots[i].public = private.PublicKey().Bytes()
	}
	for i := range 2 {
		l := testRead(t, lock)
		swap(l, i)
		_, err := Unlock(testStore, l.encode(), keyfile)
		if !errors.Is(err, secret.ErrTampered) && !errors.Is(err, secret.ErrDenied) {
			t.Errorf("slot %d swapped: got error %v", i, err)
		}
	}
	// The sealed keyring says so by itself, whatever the tags say.
	l := testRead(t, lock)
	swap(l, 1)
	l = testRead(t, l.encode())
	for i, shared := range k.keys.shared {
		l.tags[i] = lockTag(shared.key, l.authenticated)
	}
	_, err := Unlock(testStore, l.encode(), keyfile)
	wantIs(t, err, secret.ErrTampered)
}

func TestARootKeyOpensOnlyWithTheKeyPairItIsSealedTo(t *testing.T) {
	keyfile := testKeyfile(t)
	_, lock := testCreate(t, testSlots(keyfile)...)
	s, other := testRead(t, lock).slots[0], testRead(t, lock).slots[1]
	_, private, err := s.openSecret(testStore, keyfile)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.openRoot(testStore, private); err != nil {
		t.Error(err)
	}
	_, err = s.openRoot([16]byte{'o'}, private)
	wantIs(t, err, secret.ErrTampered)
	_, err = other.openRoot(testStore, private)
	wantIs(t, err, secret.ErrTampered)
	s.public = other.public
	_, err = s.openRoot(testStore, private)
	wantIs(t, err, secret.ErrTampered)
	s.kem++
	_, err = s.openRoot(testStore, private)
	wantIs(t, err, secret.ErrNewerFormat)
}

func TestASlotOfAnotherStoreDoesNotOpenThisOne(t *testing.T) {
	ours, theirs := testKeyfile(t), testKeyfile(t)
	_, lock := testCreate(t, testSlots(ours)...)
	k, other, err := Create([16]byte{'o'}, testSlots(theirs)...)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	l := testRead(t, lock)
	foreign := testRead(t, other)
	l.slots[0] = foreign.slots[0]
	_, err = Unlock(testStore, l.encode(), theirs)
	wantIs(t, err, secret.ErrDenied)
	_, err = Unlock(testStore, l.encode(), CheapPassword("correct horse"))
	wantIs(t, err, secret.ErrTampered)
}

func TestASlotCannotBeAddedRemovedOrReordered(t *testing.T) {
	keyfile := testKeyfile(t)
	k, lock := testCreate(t, testSlots(keyfile)...)
	for name, change := range map[string]func(*lockRecord){
		"removed":   func(l *lockRecord) { l.slots, l.tags = l.slots[:1], l.tags[:1] },
		"reordered": func(l *lockRecord) { l.slots[0], l.slots[1] = l.slots[1], l.slots[0] },
		"with their tags": func(l *lockRecord) {
			l.slots[0], l.slots[1] = l.slots[1], l.slots[0]
			l.tags[0], l.tags[1] = l.tags[1], l.tags[0]
		},
		"added": func(l *lockRecord) {
			added, err := newSlot(testStore, [16]byte{1}, NewSlot{Name: "theirs", Opener: CheapPassword("theirs")}, make([]byte, keySize))
			if err != nil {
				t.Fatal(err)
			}
			if err := added.sealRoot(testStore, k.keys.root); err != nil {
				t.Fatal(err)
			}
			l.slots, l.tags = append(l.slots, added), append(l.tags, make([]byte, sha256.Size))
		},
	} {
		l := testRead(t, lock)
		change(l)
		_, err := Unlock(testStore, l.encode(), keyfile)
		if !errors.Is(err, secret.ErrTampered) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

func TestAHostileRecordCannotAskForMuchMemory(t *testing.T) {
	_, lock := testCreate(t, testSlots(testKeyfile(t))...)
	for name, cost := range map[string]argonCost{
		"100 GB":           {passes: 1, memory: 100 << 20, threads: 4},
		"all":              {passes: 1, memory: 1<<32 - 1, threads: 4},
		"just too much":    {passes: 1, memory: maxMemory + 1, threads: 4},
		"less than it can": {passes: 1, memory: 31, threads: 4},
		"many passes":      {passes: maxPasses + 1, memory: 64, threads: 4},
		"no pass":          {passes: 0, memory: 64, threads: 4},
		"many threads":     {passes: 1, memory: 4096, threads: maxThreads + 1},
		"no thread":        {passes: 1, memory: 64, threads: 0},
	} {
		l := testRead(t, lock)
		bytes := []byte("correct horse")
		l.slots[1].parameters = Password{p: &password{text: &bytes, cost: cost}}.newParameters()
		_, err := Unlock(testStore, l.encode(), CheapPassword("correct horse"))
		if !errors.Is(err, secret.ErrTampered) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

// A root key is replaced, as rotation and the removal of a slot need it: the
// unlocked keyring alone makes a record that every slot opens.
func TestANewRootKeyReachesEverySlotWithNobodyPresent(t *testing.T) {
	keyfile := testKeyfile(t)
	_, lock := testCreate(t, testSlots(keyfile)...)
	k := testUnlock(t, lock, keyfile)
	clear(lock) // it is the caller's
	old := bytes.Clone(k.keys.root)
	_, _ = rand.Read(k.keys.root)
	relocked, err := k.keys.sealLock(testStore)
	if err != nil {
		t.Fatal(err)
	}
	for _, slot := range testSlots(keyfile) {
		again := testUnlock(t, relocked, slot.Opener)
		if !bytes.Equal(again.keys.root, k.keys.root) || bytes.Equal(again.keys.root, old) || !bytes.Equal(again.keys.plain, k.keys.plain) {
			t.Errorf("slot %q opens other keys", slot.Name)
		}
	}
}

func TestRecordsOfAnEarlierTermStayReadable(t *testing.T) {
	keyfile := testKeyfile(t)
	k, _ := testCreate(t, testSlots(keyfile)...)
	b := Binding{Kind: KindVersion, ID: secret.ID{1}, Version: 1}
	_, first, err := k.NewDataKey(b)
	if err != nil {
		t.Fatal(err)
	}
	lock := withSecondTerm(t, k.keys)
	k = testUnlock(t, lock, keyfile)
	if k.Term() != 2 {
		t.Errorf("the active term is %d, want 2", k.Term())
	}
	_, second, err := k.NewDataKey(b)
	if err != nil {
		t.Fatal(err)
	}
	if term := binary.BigEndian.Uint32(second); term != 2 {
		t.Errorf("wrapped by term %d, want 2", term)
	}
	for _, wrapped := range [][]byte{first, second} {
		if _, err := k.OpenDataKey(b, wrapped); err != nil {
			t.Error(err)
		}
	}
	// A wrap that claims another term that exists is as wrong as any.
	binary.BigEndian.PutUint32(second, 1)
	_, err = k.OpenDataKey(b, second)
	wantIs(t, err, secret.ErrTampered)
}

// withSecondTerm returns a lock record of the same keys with a second, active term.
func withSecondTerm(t *testing.T, from *keys) []byte {
	t.Helper()
	plain := bytes.Clone(from.plain[:2*keySize])
	plain = binary.BigEndian.AppendUint32(plain, 2)
	plain = binary.BigEndian.AppendUint16(plain, 2)
	plain = append(plain, from.plain[2*keySize+4+2:][:termSize]...)
	plain = binary.BigEndian.AppendUint32(plain, 2)
	plain = append(plain, make([]byte, 8)...)
	plain = append(plain, bytes.Repeat([]byte{2}, keySize)...)
	plain = append(plain, from.plain[2*keySize+4+2+termSize:]...)
	a, err := newArena(keySize + len(plain))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = a.close() })
	copy(a.bytes, from.root)
	copy(a.bytes[keySize:], plain)
	keys, err := decodeKeys(a, len(plain))
	if err != nil {
		t.Fatal(err)
	}
	keys.slots = from.slots
	lock, err := keys.sealLock(testStore)
	if err != nil {
		t.Fatal(err)
	}
	return lock
}

// futureOpener opens slots of a kind that this version does not know.
type futureOpener struct{ Keyfile }

func (futureOpener) slotKind() SlotKind { return 77 }

func TestSlotsOfUnknownKindsAreListedAndLeftAlone(t *testing.T) {
	keyfile := testKeyfile(t)
	slots := append(testSlots(keyfile), NewSlot{Name: "future", Opener: futureOpener{testKeyfile(t)}})
	_, lock := testCreate(t, slots...)
	infos, err := Slots(lock)
	if err != nil || len(infos) != 3 || infos[2].Kind.String() != "kind 77" || infos[2].Name != "future" {
		t.Errorf("listed %v, %v", infos, err)
	}
	testUnlock(t, lock, keyfile)
}
