// SPDX-License-Identifier: Apache-2.0

// Package seal holds the keys. It is the only package that sees them, and the
// only one that uses a cipher.
//
//	slot ──opens──► root key ──opens──► keyring: term keys, index key, audit key
//	                                       └─ the active term key wraps ──► data keys ──► fields of records
//
// A slot is one way to unlock a store: a password or a keyfile. It holds an
// HPKE key pair, whose public half the root key is sealed to. So a new root key
// reaches every slot with nobody present, and whoever once held a slot and an
// old backup cannot open a root key that was made after the slot was removed.
// The KEM is ML-KEM-768 with X25519: a copy of a store must stay closed to a
// quantum computer of later years, X25519 covers a mistake in the younger half,
// and Go runs the pair under GODEBUG=fips140=only, where it refuses X25519 alone.
//
// # What it guarantees
//
//   - AES-256-GCM with random nonces seals everything (NIST SP 800-38D). What is
//     opened is bound to the store, the kind of record, its lookup key, its ID,
//     its version and its field: a changed byte, or a record that was moved,
//     answers secret.ErrTampered and names what was being opened.
//   - Names are hidden: Locate is HMAC-SHA256 under a key that never leaves here.
//   - A lock record, the persisted form of the keyring and its slots, is opened
//     only if whoever held its slot's secret, or a keyring opened with it, made
//     it. Whoever can write the store cannot put a keyring of their own there.
//   - Wrong passwords cost an attacker 64 MiB and three passes of Argon2id each
//     (RFC 9106, section 4, second recommendation); one derivation runs at a time.
//   - Root, index, audit and term keys lie in pages that are locked into memory,
//     left out of core files, and empty in a forked child. Protection says when
//     the system did not allow that. Close clears them.
//   - Nothing that holds a key prints it: every fmt verb, slog and JSON show
//     "[redacted]".
//
// # What it does not
//
//   - The Go runtime has no way to place or to clear the expanded AES keys,
//     the state of an HMAC, the Argon2id memory and what HPKE derives. They lie in
//     the ordinary heap, may be copied as a stack grows, and remain after Close
//     and Wipe until the collector reuses the memory. Turn swap off for the
//     process (MemorySwapMax=0 in systemd) and call HardenProcess.
//   - An older lock record or an older row, put back whole, opens: it was right
//     once. Finding that needs the audit log.
//   - Whoever held a slot that was removed still knows what it had opened. They
//     can read the backups from before, and, if they can also write the store,
//     make a lock record that the other slots of their time accept.
//   - AES-GCM with random nonces allows 2^32 data keys under one term key.
//     Nothing here counts them: usage belongs into a record of its own, sealed
//     with a kind of its own, in blocks that are reserved before they are used,
//     because the lock record must not change with every write.
//   - A password has no strength here beyond not being empty.
//
// Passwords, and only they, use an algorithm outside FIPS 140-3 (Argon2id). The
// parameters of a slot begin with the number of their derivation, which leaves
// room for PBKDF2, and slots of unknown kinds are listed and left alone.
package seal
