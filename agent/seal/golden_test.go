// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/secret"
)

// The files in testdata/format1 were written by the first version that had the
// format, and every later one must open them. They are made anew only for a new
// format, in a folder of its own: go test ./agent/seal -run Golden -golden formatN
var makeGolden = flag.String("golden", "", "write golden files to this new folder of testdata")

const (
	goldenPassword = "correct horse battery staple"
	goldenValue    = "the value that was sealed"
)

var (
	goldenStore   = [16]byte{0x6b, 0x65, 0x79, 0x68, 0x6f, 0x6c, 0x65, 1, 2, 3, 4, 5, 6, 7, 8, 9}
	goldenPath    = secret.MustParsePath("db/creds")
	goldenBinding = seal.Binding{Kind: seal.KindVersion, Lookup: [32]byte{1, 2, 3}, ID: secret.ID{4, 5, 6}, Version: 7}
)

func TestGoldenFilesOpen(t *testing.T) {
	if *makeGolden != "" {
		writeGolden(t, filepath.Join("testdata", *makeGolden))
	}
	folders, err := filepath.Glob("testdata/format*")
	if err != nil || len(folders) == 0 {
		t.Fatalf("found %v, %v", folders, err)
	}
	for _, folder := range folders {
		t.Run(filepath.Base(folder), func(t *testing.T) {
			// git does not keep the mode that a keyfile needs.
			path := filepath.Join(t.TempDir(), "key")
			if err := os.WriteFile(path, readGolden(t, folder, "keyfile"), 0o600); err != nil {
				t.Fatal(err)
			}
			keyfile, err := seal.ReadKeyfile(path)
			if err != nil {
				t.Fatal(err)
			}
			password, err := seal.NewPassword([]byte(goldenPassword))
			if err != nil {
				t.Fatal(err)
			}
			for _, opener := range []seal.Opener{keyfile, password} {
				checkGolden(t, folder, unlock(t, goldenStore, readGolden(t, folder, "lock"), opener))
			}
		})
	}
}

func checkGolden(t *testing.T, folder string, k *seal.Keyring) {
	t.Helper()
	s := sealed{readGolden(t, folder, "wrapped"), readGolden(t, folder, "payload")}
	key, err := k.OpenDataKey(goldenBinding, s.wrapped)
	if err != nil {
		t.Fatal(err)
	}
	plaintext, err := key.Open(goldenBinding, seal.FieldPayload, s.payload)
	if err != nil || string(plaintext) != goldenValue {
		t.Errorf("opened %q, %v", plaintext, err)
	}
	if got, want := goldenLookups(k), string(readGolden(t, folder, "lookups")); got != want {
		t.Errorf("lookup keys\n%swant\n%s", got, want)
	}
}

// goldenLookups are the keys that must never change: a path's, a name's, and
// that of the audit log.
func goldenLookups(k *seal.Keyring) string {
	path, policy := k.Locate(goldenPath), k.LocateName("policy", "app-read")
	return strings.Join([]string{hex.EncodeToString(path[:]), hex.EncodeToString(policy[:]), hex.EncodeToString(k.AuditKey()), ""}, "\n")
}

func readGolden(t *testing.T, folder, name string) []byte {
	t.Helper()
	content, err := os.ReadFile(filepath.Join(folder, name))
	if err != nil {
		t.Fatal(err)
	}
	return content
}

func writeGolden(t *testing.T, folder string) {
	t.Helper()
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	keyfile, err := seal.NewKeyfile(filepath.Join(folder, "keyfile"))
	if err != nil {
		t.Fatal(err)
	}
	password, err := seal.NewPassword([]byte(goldenPassword))
	if err != nil {
		t.Fatal(err)
	}
	k, lock, err := seal.Create(goldenStore, keyfileSlot(keyfile), seal.NewSlot{Name: "operator", Created: created, Opener: password})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	key, wrapped, err := k.NewDataKey(goldenBinding)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := key.Seal(goldenBinding, seal.FieldPayload, []byte(goldenValue))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string][]byte{"lock": lock, "wrapped": wrapped, "payload": payload, "lookups": []byte(goldenLookups(k))} {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
