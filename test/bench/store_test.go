// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/agent"
	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/agent/vault"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/backend/sqlite"
	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// valueBytes is the size of every value.
const valueBytes = 1024

// operator administers the stores that the benchmarks make.
var operator = idOf("operator")

func idOf(path string) spiffeid.ID {
	return spiffeid.RequireFromString("spiffe://" + devdomain.DefaultTrustDomain + "/" + path)
}

// userID is the SPIFFE ID of a user's processes.
func userID(uid int) spiffeid.ID { return idOf(fmt.Sprintf("uid/%d", uid)) }

func as(id spiffeid.ID) identity.Caller {
	return identity.Caller{IDs: []spiffeid.ID{id}, Source: identity.X509, Request: "0123456789abcdef0123456789abcdef"}
}

// store is a vault on a new SQLite store, in the folder where an agent for
// development looks for it, made of what the agent makes it of. In between is
// what counts and times the commits.
type store struct {
	*vault.Vault
	commits *commits
	log     *audit.Log
	keys    *seal.Keyring
}

// newStore makes a store in an empty folder.
func newStore(ctx context.Context, dir string) (_ *store, err error) {
	dir = filepath.Join(dir, "store")
	if err := os.Mkdir(dir, 0o700); err != nil {
		return nil, err
	}
	config := agent.StoreConfig{Driver: "sqlite", Path: filepath.Join(dir, "keyhole.db")}
	keyfile := filepath.Join(dir, "root.key")
	if err := agent.InitKeyfile(ctx, config, keyfile); err != nil {
		return nil, err
	}
	b, err := sqlite.Open(sqlite.Config{Path: config.Path, MustExist: true})
	if err != nil {
		return nil, err
	}
	s := &store{commits: &commits{Backend: b}}
	if s.keys, err = unlock(ctx, b, keyfile); err != nil {
		return nil, errors.Join(err, s.close())
	}
	if s.log, err = audit.Open(audit.Config{Dir: filepath.Join(dir, "audit"), Key: s.keys.AuditKey()}); err != nil {
		return nil, errors.Join(err, s.close())
	}
	s.Vault, err = vault.Open(ctx, vault.Config{
		Backend: s.commits, Keys: s.keys, Log: s.log, Administrators: []spiffeid.ID{operator},
	})
	if err != nil {
		return nil, errors.Join(err, s.close())
	}
	return s, nil
}

func unlock(ctx context.Context, b backend.Backend, keyfile string) (*seal.Keyring, error) {
	opener, err := seal.ReadKeyfile(keyfile)
	if err != nil {
		return nil, err
	}
	info, err := b.Info(ctx)
	if err != nil {
		return nil, err
	}
	records, _, err := b.Get(ctx, []backend.Key{vault.LockKey})
	if err != nil {
		return nil, err
	}
	return seal.Unlock(info.StoreID, records[0].Body, opener)
}

func (s *store) close() error {
	var errs []error
	if s.Vault != nil {
		errs = append(errs, s.Close())
	}
	if s.log != nil {
		errs = append(errs, s.log.Close())
	}
	if s.keys != nil {
		errs = append(errs, s.keys.Close())
	}
	return errors.Join(append(errs, s.commits.Close())...)
}

// allow lets an identity do everything in a folder, beside so many policies
// that have nothing to do with it.
func (s *store) allow(ctx context.Context, id spiffeid.ID, folder string, others int) error {
	policies := []policy.Policy{{
		Name: "measured", SPIFFEID: id.String(), Path: folder + "/**",
		Permissions: []policy.Permission{policy.List, policy.Read, policy.Write},
	}}
	for i := range others {
		policies = append(policies, policy.Policy{
			Name: fmt.Sprintf("other-%d", i), SPIFFEID: fmt.Sprintf("spiffe://%s/ns/{ns}/sa/s%d", devdomain.DefaultTrustDomain, i), Path: fmt.Sprintf("apps/{ns}/s%d/**", i),
			Permissions: []policy.Permission{policy.Read},
		})
	}
	return s.ApplyPolicies(ctx, as(operator), policies)
}

// fill puts secrets of one value each, by so many writers at once.
func (s *store) fill(ctx context.Context, names []string, writers int) error {
	values, err := newValues()
	if err != nil {
		return err
	}
	defer values.Wipe()
	var next atomic.Int64
	var group sync.WaitGroup
	failures := make([]error, writers)
	for writer := range writers {
		group.Go(func() {
			for {
				i := int(next.Add(1)) - 1
				if i >= len(names) {
					return
				}
				path, err := secret.ParsePath(names[i])
				if err == nil {
					_, err = s.Put(ctx, as(operator), path, values)
				}
				if err != nil {
					failures[writer] = err
					return
				}
			}
		})
	}
	group.Wait()
	return errors.Join(failures...)
}

// newValues is what every secret holds.
func newValues() (secret.Values, error) {
	value := make([]byte, valueBytes)
	for i := range value {
		value[i] = byte('a' + i%26)
	}
	return secret.NewValues(map[string][]byte{"password": value})
}

// commits counts and times what goes to a backend, and keeps it on demand.
type commits struct {
	backend.Backend

	mu     sync.Mutex
	groups int64
	writes int64             // batches, without those that only anchor the audit log
	took   time.Duration     // of Commit
	begin  time.Time         // of the last Commit
	end    time.Time         // of the last Commit
	kept   [][]backend.Batch // since keep
	keep   bool
}

// Commit implements backend.Backend.
func (c *commits) Commit(ctx context.Context, batches []backend.Batch) ([]backend.Result, error) {
	begin := time.Now()
	results, err := c.Backend.Commit(ctx, batches)
	end := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	c.begin, c.end, c.took = begin, end, c.took+end.Sub(begin)
	c.groups++
	c.writes += countWrites(batches)
	if c.keep {
		c.kept = append(c.kept, batches)
	}
	return results, err
}

// countWrites counts the batches that somebody asked for: upkeep has no ID.
func countWrites(batches []backend.Batch) (count int64) {
	for _, batch := range batches {
		if batch.ID != [16]byte{} {
			count++
		}
	}
	return count
}

// keepFrom forgets what was kept, and begins to keep.
func (c *commits) keepFrom() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.kept, c.keep = nil, true
}

// take returns what was kept, and keeps no more.
func (c *commits) take() [][]backend.Batch {
	c.mu.Lock()
	defer c.mu.Unlock()
	kept := c.kept
	c.kept, c.keep = nil, false
	return kept
}
