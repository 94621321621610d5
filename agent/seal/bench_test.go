// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"testing"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/secret"
)

func BenchmarkLocate(b *testing.B) {
	k := newKeyring(b, storeID)
	path := secret.MustParsePath("team/service/db/creds")
	b.ReportAllocs()
	for b.Loop() {
		k.Locate(path)
	}
}

// One data key made, and 200 bytes sealed with it: a write's share.
func BenchmarkSeal200(b *testing.B) {
	k := newKeyring(b, storeID)
	plaintext := make([]byte, 200)
	b.ReportAllocs()
	for b.Loop() {
		key, _, err := k.NewDataKey(binding)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := key.Seal(binding, seal.FieldPayload, plaintext); err != nil {
			b.Fatal(err)
		}
		key.Wipe()
	}
}

// One data key opened, and 200 bytes opened with it: a read's share.
func BenchmarkOpen200(b *testing.B) {
	k := newKeyring(b, storeID)
	s := sealOne(b, k, string(make([]byte, 200)))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := openOne(k, binding, s); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkUnlockWithAKeyfile(b *testing.B) {
	keyfile := newKeyfile(b)
	k, lock, err := seal.Create(storeID, keyfileSlot(keyfile))
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	for b.Loop() {
		k, err := seal.Unlock(storeID, lock, keyfile)
		if err != nil {
			b.Fatal(err)
		}
		if err := k.Close(); err != nil {
			b.Fatal(err)
		}
	}
}
