// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"fmt"
	"io"
	"log/slog"
)

const redacted = "[redacted]"

// hidden is embedded in whatever holds a key, so that it never prints. fmt
// cannot call methods on an unexported field of somebody else's struct, so such
// types also hold their bytes behind two pointers, which then print as an
// address: one is not enough, because fmt follows it when the verb is wrong for
// a pointer, as %s is.
type hidden struct{}

// String hides the key.
func (hidden) String() string { return redacted }

// Format hides the key from every verb.
func (hidden) Format(state fmt.State, _ rune) { _, _ = io.WriteString(state, redacted) }

// LogValue hides the key from slog.
func (hidden) LogValue() slog.Value { return slog.StringValue(redacted) }

// MarshalText hides the key from encoding/json, and from other encoders that
// ask for text.
func (hidden) MarshalText() ([]byte, error) { return []byte(redacted), nil }
