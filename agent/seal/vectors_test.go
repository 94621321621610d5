// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	bytes, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// Test case 16 of "The Galois/Counter Mode of Operation", McGrew and Viega,
// which NIST took up: AES-256, a nonce of 96 bits, associated data.
func TestCiphertextIsAESGCM(t *testing.T) {
	aead, err := newCipher(unhex(t, "feffe9928665731c6d6a8f9467308308feffe9928665731c6d6a8f9467308308"))
	if err != nil {
		t.Fatal(err)
	}
	sealed := unhex(t, "cafebabefacedbaddecaf888"+
		"522dc1f099567d07f47f37a32a84427d643a8cdcbfe5c0c97598a2bd2555d1aa8cb08e48590dbb3da7b08b1056828838c5f61e6393ba7a0abcc9f662"+
		"76fc6ece0f4e1768cddf8853bb2d551b")
	plaintext, err := aead.Open(nil, nil, sealed, unhex(t, "feedfacedeadbeeffeedfacedeadbeefabaddad2"))
	want := "d9313225f88406e5a55909c5aff5269a86a7a9531534f7da2e4c303d8a318a721c3c0c95956809532fcf0e2449a6b525b16aedf5aa0de657ba637b39"
	if err != nil || hex.EncodeToString(plaintext) != want {
		t.Errorf("opened %x, %v", plaintext, err)
	}
}

// RFC 5869, A.1; the first 32 of its 42 bytes, which do not depend on the rest.
func TestKeysAreDerivedByHKDF(t *testing.T) {
	key, err := deriveKey(bytes.Repeat([]byte{0x0b}, 22), unhex(t, "000102030405060708090a0b0c"), "\xf0\xf1\xf2\xf3\xf4\xf5\xf6\xf7\xf8\xf9")
	if want := "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"; err != nil || hex.EncodeToString(key) != want {
		t.Errorf("derived %x, %v", key, err)
	}
}

// RFC 9106's own vector has a secret value and associated data, which a slot
// does not use. These were made with libargon2, the reference implementation,
// whose salts may be of 16 bytes as ours are:
//
//	echo -n password | argon2 somesaltsomesalt -id -t PASSES -k KIB -p THREADS -l 32 -r
func TestPasswordsAreDerivedByArgon2id(t *testing.T) {
	for _, vector := range []struct {
		cost argonCost
		key  string
	}{
		{defaultCost, "81db97a7e67a891784a2599bc879f957cb3512d273984bd97d8a18fc59ff01e2"}, // 3 65536 4
		{argonCost{1, 32, 1}, "fa1e90316994a42525e8e3db47cc59ed150c98d47db299b2bcb689d8217af811"},
		{argonCost{2, 256, 2}, "c112d2ee6b9d514413f806243187952186e8f19cacab80f20a823d549f111d2c"},
	} {
		t.Run(fmt.Sprint(vector.cost), func(t *testing.T) {
			parameters := append([]byte{deriveArgon2id}, "somesaltsomesalt"...)
			parameters = binary.BigEndian.AppendUint32(parameters, vector.cost.passes)
			parameters = binary.BigEndian.AppendUint32(parameters, vector.cost.memory)
			parameters = append(parameters, vector.cost.threads)
			key, err := CheapPassword("password").deriveKEK(parameters)
			if err != nil || hex.EncodeToString(key) != vector.key {
				t.Errorf("derived %x, %v; want %s", key, err, vector.key)
			}
		})
	}
}

// RFC 2104's construction over what the comments of Locate draw.
func TestLookupKeysAreHMACOverWhatIsDrawn(t *testing.T) {
	k, _ := testCreate(t, testSlots(testKeyfile(t))...)
	path := k.Locate(secret.MustParsePath("db/creds"))
	if want := lockTag(k.keys.index, []byte("\x00db/creds")); !bytes.Equal(path[:], want) {
		t.Errorf("located a path at %x, want %x", path, want)
	}
	name := k.LocateName("policy", "app-read")
	if want := lockTag(k.keys.index, []byte("\x01\x00\x00\x00\x06policyapp-read")); !bytes.Equal(name[:], want) {
		t.Errorf("located a name at %x, want %x", name, want)
	}
}
