// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"crypto/x509"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// maxVerdicts bounds the cache: about as many clients as one node may have. A
// node with more verifies some of them again, which is slower and not wrong.
const maxVerdicts = 4096

// verdict is the result of a successful verification, and when it holds.
type verdict struct {
	id         spiffeid.ID
	begin, end time.Time
}

func (v verdict) holds(now time.Time) bool { return !now.Before(v.begin) && !now.After(v.end) }

// cache remembers verdicts by the leaf's pointer. That is safe because parsed
// certificates are not modified, and because the entry keeps the certificate
// alive, so that its address is not used for another one.
type cache struct {
	mu         sync.RWMutex
	generation uint64 // of the bundles that all verdicts were reached with
	verdicts   map[*x509.Certificate]verdict
}

func (c *cache) get(leaf *x509.Certificate, generation uint64) (verdict, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	if c.generation != generation {
		return verdict{}, false
	}
	known, found := c.verdicts[leaf]
	return known, found
}

func (c *cache) put(leaf *x509.Certificate, generation uint64, reached verdict) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if generation < c.generation {
		return
	}
	if generation > c.generation || c.verdicts == nil || len(c.verdicts) >= maxVerdicts {
		c.generation, c.verdicts = generation, make(map[*x509.Certificate]verdict)
	}
	c.verdicts[leaf] = reached
}
