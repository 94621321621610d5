// SPDX-License-Identifier: Apache-2.0

// Package secret holds the words that every other package speaks: Path, Key,
// Values, Version, Info, and the errors.
//
// It guarantees that a non-zero Path or Key is well formed, because parsing is
// the only way to make one, and that the bytes of Values cannot be printed by
// accident: every fmt verb, slog and JSON show "[redacted]".
//
// It does not guarantee that secret bytes never reach swap or a core file; that
// is the business of whoever holds them. Wipe clears what Values owns, not the
// copies that a caller made.
//
// The package imports only the standard library.
package secret
