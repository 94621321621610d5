// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/secret"
)

// twoSlots returns the lock record of a store that a keyfile and a password
// open, with one sealed record of it.
func twoSlots(t testing.TB, store [16]byte, keyfile seal.Keyfile, password string) ([]byte, sealed) {
	t.Helper()
	k, lock, err := seal.Create(store, keyfileSlot(keyfile),
		seal.NewSlot{Name: "operator", Created: created.AddDate(0, 1, 0), Opener: seal.CheapPassword(password)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	return lock, sealOne(t, k, "value")
}

func unlock(t testing.TB, store [16]byte, lock []byte, opener seal.Opener) *seal.Keyring {
	t.Helper()
	k, err := seal.Unlock(store, lock, opener)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = k.Close() })
	return k
}

func TestEverySlotUnlocksTheSameKeys(t *testing.T) {
	keyfile := newKeyfile(t)
	lock, s := twoSlots(t, storeID, keyfile, "correct horse")
	a := unlock(t, storeID, lock, keyfile)
	b := unlock(t, storeID, lock, seal.CheapPassword("correct horse"))
	for _, k := range []*seal.Keyring{a, b} {
		if got, err := openOne(k, binding, s); err != nil || got != "value" {
			t.Errorf("opened %q, %v", got, err)
		}
	}
	path := secret.MustParsePath("db/creds")
	if a.Locate(path) != b.Locate(path) || !bytes.Equal(a.AuditKey(), b.AuditKey()) || a.Term() != b.Term() {
		t.Error("two slots of a store lead to different keys")
	}
}

func TestSlotsAreListedWithoutUnlocking(t *testing.T) {
	lock, _ := twoSlots(t, storeID, newKeyfile(t), "correct horse")
	infos, err := seal.Slots(lock)
	if err != nil {
		t.Fatal(err)
	}
	if len(infos) != 2 || infos[0].ID == infos[1].ID {
		t.Fatalf("listed %v", infos)
	}
	if i := infos[0]; i.Kind != seal.SlotKeyfile || i.Name != "machine" || !i.Created.Equal(created) {
		t.Errorf("listed %v", i)
	}
	if i := infos[1]; i.Kind != seal.SlotPassword || i.Name != "operator" || !i.Created.Equal(created.AddDate(0, 1, 0)) {
		t.Errorf("listed %v", i)
	}
}

func TestTheWrongPasswordOrKeyfileIsDenied(t *testing.T) {
	keyfile := newKeyfile(t)
	lock, _ := twoSlots(t, storeID, keyfile, "correct horse")
	for name, opener := range map[string]seal.Opener{
		"another password":   seal.CheapPassword("correct horsf"),
		"a shorter password": seal.CheapPassword("correct hors"),
		"another keyfile":    newKeyfile(t),
	} {
		_, err := seal.Unlock(storeID, lock, opener)
		if !errors.Is(err, secret.ErrDenied) || errors.Is(err, secret.ErrTampered) {
			t.Errorf("%s: got error %v, want %v", name, err, secret.ErrDenied)
		}
	}
}

func TestAnEmptyOpenerIsInvalid(t *testing.T) {
	keyfile := newKeyfile(t)
	lock, _ := twoSlots(t, storeID, keyfile, "correct horse")
	wiped := seal.CheapPassword("correct horse")
	wiped.Wipe()
	keyfile.Wipe()
	for _, opener := range []seal.Opener{nil, seal.Password{}, seal.Keyfile{}, wiped, keyfile} {
		_, err := seal.Unlock(storeID, lock, opener)
		wantError(t, err, secret.ErrInvalid)
		_, _, err = seal.Create(storeID, seal.NewSlot{Name: "a", Created: created, Opener: opener})
		wantError(t, err, secret.ErrInvalid)
	}
	for _, text := range []string{"", strings.Repeat("x", 1025)} {
		_, err := seal.NewPassword([]byte(text))
		wantError(t, err, secret.ErrInvalid)
	}
}

func TestAStoreWithoutSuchASlotSaysWhatItHas(t *testing.T) {
	k, lock, err := seal.Create(storeID, keyfileSlot(newKeyfile(t)))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	_, err = seal.Unlock(storeID, lock, seal.CheapPassword("correct horse"))
	wantError(t, err, secret.ErrDenied)
	if want := `the store has no password slot; it has "machine" (keyfile)`; err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("got error %v, want one that says %s", err, want)
	}
}

func TestBadNewSlotsAreRefused(t *testing.T) {
	slot := keyfileSlot(newKeyfile(t))
	unnamed, long := slot, slot
	unnamed.Name, long.Name = "", strings.Repeat("n", 254)
	for name, slots := range map[string][]seal.NewSlot{
		"none":      nil,
		"many":      make([]seal.NewSlot, 17),
		"unnamed":   {unnamed},
		"long name": {long},
		"the same":  {slot, slot},
	} {
		if _, _, err := seal.Create(storeID, slots...); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

// withChecksum returns the record with the checksum that its content asks for,
// as an attacker would leave it.
func withChecksum(lock []byte) []byte {
	content := lock[:len(lock)-sha256.Size]
	sum := sha256.Sum256(content)
	return append(bytes.Clone(content), sum[:]...)
}

func TestAnyDamagedByteOfALockRecordIsNamedAsDamage(t *testing.T) {
	keyfile := newKeyfile(t)
	lock, _ := twoSlots(t, storeID, keyfile, "correct horse")
	for i := range lock {
		lock[i] ^= 0x40
		_, err := seal.Unlock(storeID, lock, keyfile)
		_, listErr := seal.Slots(lock)
		for _, err := range []error{err, listErr} {
			// The format is bytes 6 and 7: a higher one is a newer one.
			if !errors.Is(err, secret.ErrTampered) && (i < 6 || i > 7 || !errors.Is(err, secret.ErrNewerFormat)) {
				t.Errorf("byte %d changed: got error %v", i, err)
			}
		}
		lock[i] ^= 0x40
	}
	for n := range lock {
		_, err := seal.Unlock(storeID, lock[:n], keyfile)
		wantError(t, err, secret.ErrTampered)
	}
	_, err := seal.Unlock(storeID, append(bytes.Clone(lock), 0), keyfile)
	wantError(t, err, secret.ErrTampered)
	unlock(t, storeID, lock, keyfile)
}

func TestAnyByteOfALockRecordThatWasChangedWithCareIsRefused(t *testing.T) {
	keyfile := newKeyfile(t)
	lock, _ := twoSlots(t, storeID, keyfile, "correct horse")
	for i := range len(lock) - sha256.Size {
		for _, bit := range []byte{1, 0x80} {
			lock[i] ^= bit
			_, err := seal.Unlock(storeID, withChecksum(lock), keyfile)
			if !errors.Is(err, secret.ErrTampered) && !errors.Is(err, secret.ErrDenied) && !errors.Is(err, secret.ErrNewerFormat) {
				t.Errorf("byte %d changed: got error %v", i, err)
			}
			lock[i] ^= bit
		}
	}
	_, err := seal.Unlock(storeID, withChecksum(append(bytes.Clone(lock), 0)), keyfile)
	wantError(t, err, secret.ErrTampered)
	unlock(t, storeID, withChecksum(lock), keyfile)
}

func TestALockRecordOfAnotherStoreIsRefused(t *testing.T) {
	keyfile := newKeyfile(t)
	other := [16]byte{'o'}
	lock, _ := twoSlots(t, other, keyfile, "correct horse")
	_, err := seal.Unlock(storeID, lock, keyfile)
	wantError(t, err, secret.ErrTampered)
	// Also when it claims to be this store's: the record begins with 6 bytes
	// of magic, 2 of format, 16 of the store's ID.
	copy(lock[8:], storeID[:])
	_, err = seal.Unlock(storeID, withChecksum(lock), keyfile)
	wantError(t, err, secret.ErrDenied)
}

func TestANewerLockRecordIsNamedAsSuch(t *testing.T) {
	lock := []byte("khlock\x00\x02 whatever comes then")
	_, err := seal.Unlock(storeID, lock, newKeyfile(t))
	wantError(t, err, secret.ErrNewerFormat)
	_, err = seal.Slots(lock)
	wantError(t, err, secret.ErrNewerFormat)
}
