// SPDX-License-Identifier: Apache-2.0

package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/keyhole-agent/keyhole/agent/seal"
)

// keyBytes returns the key in a keyfile.
func keyBytes(t *testing.T, path string) []byte {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	_, encoded, _ := strings.Cut(strings.TrimSpace(string(content)), ":")
	raw, err := base64.RawURLEncoding.DecodeString(encoded)
	if err != nil {
		t.Fatal(err)
	}
	return raw[:32]
}

func TestNothingPrintsAKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	keyfile, err := seal.NewKeyfile(path)
	if err != nil {
		t.Fatal(err)
	}
	k, _, err := seal.Create(storeID, keyfileSlot(keyfile))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = k.Close() }()
	dataKey, _, err := k.NewDataKey(binding)
	if err != nil {
		t.Fatal(err)
	}
	secrets := [][]byte{[]byte("correct horse"), keyBytes(t, path), k.AuditKey()}

	for _, holder := range []any{dataKey, &dataKey, k, keyfile, &keyfile, seal.CheapPassword("correct horse")} {
		if v := slog.AnyValue(holder).Resolve(); v.Kind() != slog.KindString || v.String() != "[redacted]" {
			t.Errorf("%T is logged as %v", holder, v)
		}
		exported := struct{ Holder any }{holder}
		for _, shown := range append(show(t, holder), show(t, exported)...) {
			if !strings.Contains(shown, "[redacted]") {
				t.Errorf("%T shows as %q", holder, shown)
			}
		}
	}
	// Nothing can be called on an unexported field; it must not show the key all the same.
	type inner struct {
		dataKey  seal.DataKey
		keyring  *seal.Keyring
		keyfile  seal.Keyfile
		password seal.Password
	}
	for _, shown := range show(t, inner{dataKey, k, keyfile, seal.CheapPassword("correct horse")}) {
		for _, bytes := range secrets {
			for _, form := range []string{string(bytes), hex.EncodeToString(bytes), strings.ToUpper(hex.EncodeToString(bytes)),
				strings.Trim(fmt.Sprintf("%v", bytes), "[]"), strings.Trim(fmt.Sprintf("%#v", bytes), "[]byte{}")} {
				if strings.Contains(shown, form) {
					t.Errorf("a key shows in %q", shown)
				}
			}
		}
	}
}

func show(t *testing.T, v any) (shown []string) {
	t.Helper()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%o", "%b", "%t", "%e", "%c", "%U"} {
		shown = append(shown, fmt.Sprintf(verb, v))
	}
	shown = append(shown, fmt.Sprint(v), fmt.Sprintln(v))
	encoded, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	shown = append(shown, string(encoded))
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("", "v", v)
	shown = append(shown, log.String())
	log.Reset()
	slog.New(slog.NewTextHandler(&log, nil)).Info("", "v", v)
	return append(shown, log.String())
}
