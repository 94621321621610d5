// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"crypto/hmac"
	"crypto/sha256"
	"fmt"
	"hash"

	"github.com/keyhole-agent/keyhole/secret"
)

// KeySize is the least size of an audit key in bytes.
const KeySize = 32

// chain computes the MACs that tie records together. It is not safe for
// concurrent use; its state is reused so that a record costs no allocation.
type chain struct {
	keyed hash.Hash // HMAC-SHA256; nil while sealed
	plain hash.Hash // SHA-256
	last  [32]byte
}

// newChain copies what it needs of key, which is nil while sealed.
func newChain(key []byte) (*chain, error) {
	c := &chain{plain: sha256.New()}
	if key == nil {
		return c, nil
	}
	if len(key) < KeySize {
		return nil, fmt.Errorf("%w audit key: %d bytes, at least %d are needed", secret.ErrInvalid, len(key), KeySize)
	}
	c.keyed = hmac.New(sha256.New, key)
	return c, nil
}

func (c *chain) sealed() bool { return c.keyed == nil }

// sum returns the MAC of a line that follows previous. The result is valid
// until the next call. It is nil when the line has a key that c lacks.
func (c *chain) sum(sealed bool, previous *[32]byte, line []byte) *[32]byte {
	h := c.keyed
	if sealed {
		h = c.plain
	}
	if h == nil {
		return nil
	}
	h.Reset()
	// Through c, so that previous need not escape. hash.Hash never fails.
	c.last = *previous
	_, _ = h.Write(c.last[:])
	_, _ = h.Write(line)
	h.Sum(c.last[:0])
	return &c.last
}
