// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"bytes"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/secret"
)

var (
	storeID = [16]byte{'s', 't', 'o', 'r', 'e'}
	created = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
)

func newKeyfile(t testing.TB) seal.Keyfile {
	t.Helper()
	key, err := seal.NewKeyfile(filepath.Join(t.TempDir(), "key"))
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func keyfileSlot(key seal.Keyfile) seal.NewSlot {
	return seal.NewSlot{Name: "machine", Created: created, Opener: key}
}

func newKeyring(t testing.TB, store [16]byte) *seal.Keyring {
	t.Helper()
	k, _, err := seal.Create(store, keyfileSlot(newKeyfile(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	})
	return k
}

func wantError(t *testing.T, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Errorf("got error %v, want %v", err, want)
	}
}

var binding = seal.Binding{Kind: seal.KindVersion, Lookup: [32]byte{9}, ID: secret.ID{1, 2, 3}, Version: 7}

// sealed is one record: a wrapped data key and a payload.
type sealed struct{ wrapped, payload []byte }

func sealOne(t testing.TB, k *seal.Keyring, plaintext string) sealed {
	t.Helper()
	key, wrapped, err := k.NewDataKey(binding)
	if err != nil {
		t.Fatal(err)
	}
	defer key.Wipe()
	payload, err := key.Seal(binding, seal.FieldPayload, []byte(plaintext))
	if err != nil {
		t.Fatal(err)
	}
	return sealed{wrapped, payload}
}

func openOne(k *seal.Keyring, b seal.Binding, s sealed) (string, error) {
	key, err := k.OpenDataKey(b, s.wrapped)
	if err != nil {
		return "", err
	}
	defer key.Wipe()
	plaintext, err := key.Open(b, seal.FieldPayload, s.payload)
	return string(plaintext), err
}

func TestARecordOpensToWhatWasSealed(t *testing.T) {
	k := newKeyring(t, storeID)
	for _, plaintext := range []string{"", "x", "correct horse", strings.Repeat("long ", 1<<18)} {
		s := sealOne(t, k, plaintext)
		if len(s.wrapped) != seal.WrappedSize || len(s.payload) != len(plaintext)+seal.Overhead {
			t.Errorf("sizes %d and %d for %d bytes", len(s.wrapped), len(s.payload), len(plaintext))
		}
		if got, err := openOne(k, binding, s); err != nil || got != plaintext {
			t.Errorf("opened %d bytes, %v; want the %d that were sealed", len(got), err, len(plaintext))
		}
	}
}

func TestEqualPlaintextsSealDifferently(t *testing.T) {
	k := newKeyring(t, storeID)
	a, b := sealOne(t, k, "same"), sealOne(t, k, "same")
	if bytes.Equal(a.wrapped, b.wrapped) || bytes.Equal(a.payload, b.payload) {
		t.Error("two records of equal values are equal")
	}
}

func TestAMovedRecordDoesNotOpen(t *testing.T) {
	k := newKeyring(t, storeID)
	s := sealOne(t, k, "value")
	moves := map[string]func(*seal.Binding){
		"to another kind":    func(b *seal.Binding) { b.Kind = seal.KindPolicy },
		"to another path":    func(b *seal.Binding) { b.Lookup[31]++ },
		"to another secret":  func(b *seal.Binding) { b.ID[15]++ },
		"to another version": func(b *seal.Binding) { b.Version++ },
	}
	for name, move := range moves {
		t.Run(name, func(t *testing.T) {
			moved := binding
			move(&moved)
			_, err := k.OpenDataKey(moved, s.wrapped)
			wantError(t, err, secret.ErrTampered)
			key, err := k.OpenDataKey(binding, s.wrapped)
			if err != nil {
				t.Fatal(err)
			}
			_, err = key.Open(moved, seal.FieldPayload, s.payload)
			wantError(t, err, secret.ErrTampered)
		})
	}
	t.Run("to another field", func(t *testing.T) {
		key, err := k.OpenDataKey(binding, s.wrapped)
		if err != nil {
			t.Fatal(err)
		}
		_, err = key.Open(binding, seal.FieldHead, s.payload)
		wantError(t, err, secret.ErrTampered)
	})
}

// The same keys under another store's ID, so that only the ID is different.
func TestARecordOfAnotherStoreDoesNotOpen(t *testing.T) {
	k, other := newKeyring(t, storeID), newKeyring(t, [16]byte{'o'})
	_, err := openOne(other, binding, sealOne(t, k, "value"))
	wantError(t, err, secret.ErrTampered)
}

func TestAnyChangedByteOfARecordIsRefused(t *testing.T) {
	k := newKeyring(t, storeID)
	s := sealOne(t, k, "value")
	for _, part := range [][]byte{s.wrapped, s.payload} {
		for i := range part {
			for _, bit := range []byte{1, 0x80} {
				part[i] ^= bit
				if _, err := openOne(k, binding, s); !errors.Is(err, secret.ErrTampered) {
					t.Errorf("byte %d of %d changed: got error %v", i, len(part), err)
				}
				part[i] ^= bit
			}
		}
	}
	if _, err := openOne(k, binding, s); err != nil {
		t.Errorf("unchanged: %v", err)
	}
}

func TestACutOrLengthenedRecordIsRefused(t *testing.T) {
	k := newKeyring(t, storeID)
	s := sealOne(t, k, "value")
	for n := range s.wrapped {
		_, err := openOne(k, binding, sealed{s.wrapped[:n], s.payload})
		wantError(t, err, secret.ErrTampered)
	}
	for n := range s.payload {
		_, err := openOne(k, binding, sealed{s.wrapped, s.payload[:n]})
		wantError(t, err, secret.ErrTampered)
	}
	_, err := openOne(k, binding, sealed{append(bytes.Clone(s.wrapped), 0), s.payload})
	wantError(t, err, secret.ErrTampered)
	_, err = openOne(k, binding, sealed{s.wrapped, append(bytes.Clone(s.payload), 0)})
	wantError(t, err, secret.ErrTampered)
}

func TestAnErrorNamesWhatWasBeingOpened(t *testing.T) {
	k := newKeyring(t, storeID)
	s := sealOne(t, k, "value")
	s.payload[20] ^= 1
	_, err := openOne(k, binding, s)
	want := "opening the payload of version 7 of 01020300000000000000000000000000 at 09000000000000000000000000000000: record failed authentication"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %v", err, want)
	}
}

func TestLookupKeysAreStableSeparateAndTheStoresOwn(t *testing.T) {
	k := newKeyring(t, storeID)
	path := secret.MustParsePath
	keys := map[[32]byte]string{}
	for name, key := range map[string][32]byte{
		"the root":                 k.Locate(secret.Path{}),
		"path a":                   k.Locate(path("a")),
		"path a/b":                 k.Locate(path("a/b")),
		"a long path":              k.Locate(path(strings.Repeat("long/", 30) + "er")),
		"policy a":                 k.LocateName("policy", "a"),
		"the name a of no kind":    k.LocateName("", "a"),
		"the kind a of no name":    k.LocateName("a", ""),
		"nothing":                  k.LocateName("", ""),
		"ab, c":                    k.LocateName("ab", "c"),
		"a, bc":                    k.LocateName("a", "bc"),
		"zero":                     {},
		"path a in another store":  newKeyring(t, storeID).Locate(path("a")),
		"the path policy, a child": k.Locate(path("policy/a")),
	} {
		if other, taken := keys[key]; taken {
			t.Errorf("%s has the lookup key of %s", name, other)
		}
		keys[key] = name
	}
	first, second := k.Locate(path("a")), k.Locate(path("a"))
	name, again := k.LocateName("policy", "a"), k.LocateName("policy", "a")
	if first != second || name != again {
		t.Error("a lookup key changed")
	}
}

func TestAClosedKeyringAnswersSealed(t *testing.T) {
	k := newKeyring(t, storeID)
	s := sealOne(t, k, "value")
	if err := k.Err(); err != nil {
		t.Errorf("open: %v", err)
	}
	if len(k.AuditKey()) != 32 || bytes.Equal(k.AuditKey(), make([]byte, 32)) || k.Term() != 1 || k.StoreID() != storeID {
		t.Errorf("audit key of %d bytes, term %d, store %x", len(k.AuditKey()), k.Term(), k.StoreID())
	}
	for range 2 {
		if err := k.Close(); err != nil {
			t.Fatal(err)
		}
	}
	_, _, err := k.NewDataKey(binding)
	wantError(t, err, secret.ErrSealed)
	_, err = k.OpenDataKey(binding, s.wrapped)
	wantError(t, err, secret.ErrSealed)
	wantError(t, k.Err(), secret.ErrSealed)
	if k.AuditKey() != nil || k.Term() != 0 || k.Locate(secret.Path{}) != [32]byte{} || k.LocateName("policy", "a") != [32]byte{} {
		t.Error("a closed keyring still answers")
	}
}

func TestADataKeyOutlivesItsKeyringButNotItsWipe(t *testing.T) {
	k := newKeyring(t, storeID)
	key, _, err := k.NewDataKey(binding)
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	payload, err := key.Seal(binding, seal.FieldPayload, []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []seal.DataKey{key, {}} {
		gone.Wipe()
		_, err = gone.Open(binding, seal.FieldPayload, payload)
		wantError(t, err, secret.ErrSealed)
		_, err = gone.Seal(binding, seal.FieldPayload, nil)
		wantError(t, err, secret.ErrSealed)
	}
}

// Run with -race: the keyring is used from everywhere while it closes.
func TestAKeyringIsUsedAndClosedConcurrently(t *testing.T) {
	k := newKeyring(t, storeID)
	s := sealOne(t, k, "value")
	path := secret.MustParsePath("db/creds")
	want := k.Locate(path)
	var users sync.WaitGroup
	started := make(chan struct{}, 4)
	for range 4 {
		users.Go(func() {
			for i := 0; ; i++ {
				got, err := openOne(k, binding, s)
				if errors.Is(err, secret.ErrSealed) {
					return
				}
				if err != nil || got != "value" {
					t.Errorf("opened %q, %v", got, err)
					return
				}
				if key := k.Locate(path); key != want && key != [32]byte{} {
					t.Errorf("located %x, want %x", key, want)
				}
				clear(k.AuditKey())
				if _, _, err := k.NewDataKey(binding); err != nil && !errors.Is(err, secret.ErrSealed) {
					t.Error(err)
				}
				if i == 100 {
					started <- struct{}{}
				}
			}
		})
	}
	for range 4 {
		<-started
	}
	if err := k.Close(); err != nil {
		t.Error(err)
	}
	users.Wait()
}
