// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"sync"

	"golang.org/x/crypto/argon2"

	"github.com/keyhole-agent/keyhole/secret"
)

// maxPassword bounds a password in bytes: enough for any sentence.
const maxPassword = 1024

// Password opens the password slots of a store. It never prints.
type Password struct {
	hidden
	p *password
}

type password struct {
	text *[]byte
	cost argonCost // of new slots
}

// NewPassword takes over the bytes of a password, 1 to 1024 as they are: nothing
// is trimmed or normalised. The error is ErrInvalid.
func NewPassword(text []byte) (Password, error) {
	if len(text) < 1 || len(text) > maxPassword {
		return Password{}, fmt.Errorf("%w password: it has %d bytes, and needs 1 to %d", secret.ErrInvalid, len(text), maxPassword)
	}
	return Password{p: &password{text: &text, cost: defaultCost}}, nil
}

// Wipe clears the password. It opens nothing afterwards.
func (p Password) Wipe() {
	if p.p != nil {
		clear(*p.p.text)
		*p.p.text = nil
	}
}

// argonCost is the cost of Argon2id.
type argonCost struct {
	passes  uint32
	memory  uint32 // KiB
	threads uint8
}

// defaultCost is the second recommendation of RFC 9106, section 4, for where
// 2 GiB are too much.
var defaultCost = argonCost{passes: 3, memory: 64 << 10, threads: 4}

// What a stored cost may ask of this machine: 1 GiB, and some 30 seconds. A
// higher one was not written by Keyhole.
const (
	maxPasses  = 16
	maxMemory  = 1 << 20 // KiB
	maxThreads = 16
)

// The parameters of a password slot, numbers big-endian:
//
//	derivation = 1 (Argon2id, version 0x13), 1 | salt, 16 | passes, 4 | memory in KiB, 4 | threads, 1
//
// The key is the output of 32 bytes, for no secret value and no associated data.
const (
	deriveArgon2id = 1
	saltSize       = 16
)

// argonTurn lets one derivation run at a time, in the whole process: memory is
// the process's, and guesses gain nothing from being made at once.
var argonTurn sync.Mutex

func (p Password) slotKind() SlotKind { return SlotPassword }

func (p Password) newParameters() []byte {
	parameters := newSaltedParameters(deriveArgon2id)
	cost := defaultCost
	if p.p != nil {
		cost = p.p.cost
	}
	parameters = binary.BigEndian.AppendUint32(parameters, cost.passes)
	parameters = binary.BigEndian.AppendUint32(parameters, cost.memory)
	return append(parameters, cost.threads)
}

func (p Password) deriveKEK(parameters []byte) ([]byte, error) {
	if p.p == nil || len(*p.p.text) == 0 {
		return nil, fmt.Errorf("%w password: it is empty", secret.ErrInvalid)
	}
	r := reader{rest: parameters}
	if derivation := r.uint8(); derivation != deriveArgon2id {
		return nil, unknownDerivation(derivation)
	}
	salt := r.take(saltSize)
	cost := argonCost{passes: r.uint32(), memory: r.uint32(), threads: r.uint8()}
	switch {
	case r.failed || len(r.rest) > 0:
		return nil, fmt.Errorf("reading the parameters of Argon2id: %w", secret.ErrTampered)
	case cost.passes < 1 || cost.passes > maxPasses || cost.threads < 1 || cost.threads > maxThreads,
		cost.memory < 8*uint32(cost.threads) || cost.memory > maxMemory:
		return nil, fmt.Errorf("reading the parameters of Argon2id: %d passes, %d KiB and %d threads are out of bounds: %w",
			cost.passes, cost.memory, cost.threads, secret.ErrTampered)
	}
	argonTurn.Lock()
	defer argonTurn.Unlock()
	return argon2.IDKey(*p.p.text, salt, cost.passes, cost.memory, cost.threads, keySize), nil
}

// newSaltedParameters returns the beginning that all parameters share.
func newSaltedParameters(derivation byte) []byte {
	parameters := make([]byte, 1+saltSize, 64)
	parameters[0] = derivation
	_, _ = rand.Read(parameters[1:]) // never fails
	return parameters
}

// unknownDerivation: the record's checksum was right, so this is no damage.
func unknownDerivation(derivation byte) error {
	return fmt.Errorf("key derivation %d is unknown to this program: %w", derivation, secret.ErrNewerFormat)
}
