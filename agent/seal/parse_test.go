// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func FuzzParseKeyfile(f *testing.F) {
	f.Add(testKeyfile(f).line())
	f.Add([]byte(keyfilePrefix))
	f.Fuzz(func(t *testing.T, content []byte) {
		key, err := parseKeyfile(content)
		if err != nil {
			return
		}
		if line := key.line(); !bytes.Equal(line, content) && !bytes.Equal(line[:len(line)-1], content) {
			t.Errorf("%q was read, and is written as %q", content, line)
		}
	})
}

func TestMalformedParametersAreRefused(t *testing.T) {
	keyfile := testKeyfile(t)
	for _, opener := range []Opener{keyfile, CheapPassword("correct horse")} {
		good := opener.newParameters()
		for n := 1; n < len(good); n++ {
			_, err := opener.deriveKEK(good[:n])
			wantIs(t, err, secret.ErrTampered)
		}
		_, err := opener.deriveKEK(append(bytes.Clone(good), 0))
		wantIs(t, err, secret.ErrTampered)
		good[0] = 99
		_, err = opener.deriveKEK(good)
		wantIs(t, err, secret.ErrNewerFormat)
	}
}

func TestAMalformedKeyringIsRefused(t *testing.T) {
	k, _ := testCreate(t, testSlots(testKeyfile(t))...)
	decode := func(plain []byte) error {
		a, err := newArena(keySize + len(plain))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = a.close() }()
		copy(a.bytes[keySize:], plain)
		_, err = decodeKeys(a, len(plain))
		return err
	}
	if err := decode(k.keys.plain); err != nil {
		t.Fatal(err)
	}
	for n := range k.keys.plain {
		wantIs(t, decode(k.keys.plain[:n]), secret.ErrTampered)
	}
	wantIs(t, decode(append(bytes.Clone(k.keys.plain), 0)), secret.ErrTampered)
	const count = 2*keySize + 4
	twice := bytes.Clone(k.keys.plain[:count])
	twice = append(twice, 0, 2)
	term := k.keys.plain[count+2:][:termSize]
	twice = append(append(append(twice, term...), term...), k.keys.plain[count+2+termSize:]...)
	wantIs(t, decode(twice), secret.ErrTampered)
	inactive := bytes.Clone(k.keys.plain)
	inactive[2*keySize+3] = 9
	wantIs(t, decode(inactive), secret.ErrTampered)
}

func TestDoubledSlotsAreNotListed(t *testing.T) {
	_, lock := testCreate(t, testSlots(testKeyfile(t))...)
	for name, double := range map[string]func(a, b *slot){
		"ID":   func(a, b *slot) { b.id = a.id },
		"name": func(a, b *slot) { b.name = a.name },
	} {
		l := testRead(t, lock)
		double(l.slots[0], l.slots[1])
		if _, err := Slots(l.encode()); !errors.Is(err, secret.ErrTampered) {
			t.Errorf("%s: got error %v", name, err)
		}
	}
}

func TestNoDataKeyStaysInAPooledBuffer(t *testing.T) {
	k, _ := testCreate(t, testSlots(testKeyfile(t))...)
	b := Binding{Kind: KindPolicy}
	_, wrapped, err := k.NewDataKey(b)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		if left := k.open.Load().buffers.Get().(*buffer); left.key != [keySize]byte{} {
			t.Error("a key was left behind")
		}
	}
	check()
	if _, err := k.OpenDataKey(b, wrapped); err != nil {
		t.Fatal(err)
	}
	check()
}

func FuzzReadLock(f *testing.F) {
	_, lock := testCreate(f, testSlots(testKeyfile(f))...)
	f.Add(lock[:len(lock)-sha256.Size])
	f.Add([]byte(lockMagic + "\x00\x01"))
	f.Fuzz(func(t *testing.T, content []byte) {
		sum := sha256.Sum256(content)
		record := append(bytes.Clone(content), sum[:]...)
		l, err := readLock(record)
		if err != nil {
			if !errors.Is(err, secret.ErrTampered) && !errors.Is(err, secret.ErrNewerFormat) {
				t.Errorf("got error %v", err)
			}
			return
		}
		if !bytes.Equal(l.encode(), record) {
			t.Error("a record that was read is written differently")
		}
	})
}
