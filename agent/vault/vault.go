// SPDX-License-Identifier: Apache-2.0

// Package vault is the one door to secrets.
//
// Each method takes the caller, decides by the policies, does what was asked,
// and writes the audit record before it answers: identify → authorize → load →
// unseal → audit. No function of this package returns secret bytes without a
// caller, and if the audit record cannot be written, the operation fails.
//
// What it guarantees: a write that was acknowledged is durable, and its outcome
// is in the audit log; concurrent writers never lose one another's versions; a
// caller that may not list a path learns nothing about it; a stored record that
// was changed, swapped or cut is refused with secret.ErrTampered, and the
// others are still served.
//
// What it does not: it cannot tell that somebody put a secret's older records
// back as a whole. Plaintext is never cached; Values given to a caller are the
// caller's to wipe.
//
// Lock order: policyMu; then, on its own, one of committer.mu, cache.mu,
// index.mu, feeds.mu (before Feed.mu).
package vault

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	"github.com/keyhole-agent/keyhole/agent/audit"
	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// DefaultCacheBytes is how much memory the cache of sealed records may take.
const DefaultCacheBytes = 32 << 20

// anchorEvery is how long the head of an idle audit log may go unanchored.
const anchorEvery = 10 * time.Second

// Config is what a Vault is made of. The vault does not close any of it.
type Config struct {
	Backend        backend.Backend
	Keys           *seal.Keyring
	Log            *audit.Log
	Administrators []spiffeid.ID // hold super on everything, whatever the policies say
	Development    bool          // marks audit records
	CacheBytes     int           // of sealed records; 0 means DefaultCacheBytes
	Logger         *slog.Logger  // nil discards
	Now            func() time.Time
}

// Vault is the door. All methods may be called concurrently.
type Vault struct {
	backend     backend.Backend
	keys        *seal.Keyring
	log         *audit.Log
	development bool
	logger      *slog.Logger
	now         func() time.Time

	cache     *cache
	index     index
	committer *committer
	feeds     feeds
	damaged   map[string]error // by the ID of a record in "secrets" that did not open at Open

	policyMu       sync.Mutex // held while the stored policies change
	administrators []spiffeid.ID
	policies       atomic.Pointer[policies] // read without the lock

	lastAnchor atomic.Uint64 // audit.Head.Index of the last anchor in the store
	upkeep     sync.WaitGroup
	stop       context.CancelFunc
}

// Open reads the names and the policies, decides what became of changes that
// were under way when the agent last stopped, and returns a vault that serves.
//
// A secret whose record does not open is logged, and refused by its path; it
// does not keep the others from being served. A policy that does not open does:
// deciding without it would be a guess.
func Open(ctx context.Context, config Config) (*Vault, error) {
	v := &Vault{
		backend: config.Backend, keys: config.Keys, log: config.Log,
		administrators: config.Administrators, development: config.Development,
		logger: config.Logger, now: config.Now, damaged: map[string]error{},
		feeds: feeds{live: map[*Feed]struct{}{}},
	}
	if v.logger == nil {
		v.logger = slog.New(slog.DiscardHandler)
	}
	if v.now == nil {
		v.now = time.Now // the only clock of this package
	}
	if config.CacheBytes == 0 {
		config.CacheBytes = DefaultCacheBytes
	}
	v.cache = newCache(config.CacheBytes)
	if err := v.loadPolicies(ctx); err != nil {
		return nil, err
	}
	folders, err := v.loadNames(ctx)
	if err != nil {
		return nil, err
	}
	if err := v.reconcile(ctx); err != nil {
		return nil, err
	}
	v.committer = startCommitter(v) //nolint:contextcheck // groups belong to no caller
	if err := v.removeFolders(ctx, folders); err != nil {
		v.committer.close()
		return nil, err
	}
	upkeep, stop := context.WithCancel(context.WithoutCancel(ctx))
	v.stop = stop
	v.upkeep.Go(func() { v.keepAnchored(upkeep) })
	return v, nil
}

// Close finishes the changes that were submitted and refuses further ones.
func (v *Vault) Close() error {
	v.stop()
	v.upkeep.Wait()
	v.committer.close()
	return nil
}

// Damaged tells how many records of secrets did not open at Open.
func (v *Vault) Damaged() int { return len(v.damaged) }

// Len returns how many secrets there are, the empty ones included.
func (v *Vault) Len() int { return v.index.len() }

// loadNames builds the index, and returns the folders that nothing lies under:
// what a purge leaves when it is interrupted.
func (v *Vault) loadNames(ctx context.Context) (empty []secret.Path, err error) {
	var folders []secret.Path
	for r, err := range v.scan(ctx, backend.Query{Table: backend.Secrets}) {
		if err != nil {
			return nil, fmt.Errorf("reading the names of the secrets: %w", err)
		}
		if isFolder(r) {
			path, err := v.openFolder(r)
			if err != nil {
				v.reportDamage(r, err)
				continue
			}
			folders = append(folders, path)
			continue
		}
		s, err := v.openSecret(secret.Path{}, r, false)
		if err != nil {
			v.reportDamage(r, err)
			continue
		}
		v.index.names.Set(sortable(s.path), entry{id: s.id, current: s.live.Version})
	}
	names := v.index.snapshot()
	for _, folder := range folders {
		if !names.occupied(folder) {
			empty = append(empty, folder)
		}
	}
	return empty, nil
}

func (v *Vault) reportDamage(r backend.Record, err error) {
	v.damaged[r.Key.ID] = err
	v.logger.Error("a stored record is refused; restore it from a backup, or destroy it", "record", fmt.Sprintf("%s/%x", r.Key.Table, r.Key.ID), "error", err)
}

// scan yields all records of a query, page by page.
func (v *Vault) scan(ctx context.Context, q backend.Query) func(func(backend.Record, error) bool) {
	return func(yield func(backend.Record, error) bool) {
		if q.Limit == 0 {
			q.Limit = 1000
		}
		for {
			page, err := v.backend.Scan(ctx, q)
			if err != nil {
				yield(backend.Record{}, err)
				return
			}
			for _, r := range page.Records {
				if !yield(r, nil) {
					return
				}
			}
			if page.Next == "" {
				return
			}
			q.Cursor = page.Next
		}
	}
}

// AnchorKey is where the head of this node's audit log is anchored.
var AnchorKey = backend.Key{Table: backend.Anchors, ID: "local"}

// LockKey is where the locks of the root key and the sealed keyring are.
var LockKey = backend.Key{Table: backend.Meta, ID: "lock"}

func (v *Vault) anchor(head audit.Head) backend.Batch {
	return backend.Batch{Ops: []backend.Op{{Record: backend.Record{Key: AnchorKey, Body: head.Append(nil)}}}}
}

func (v *Vault) anchored(head audit.Head) { v.lastAnchor.Store(head.Index) }

// keepAnchored anchors the head of an audit log that only reads are added to.
func (v *Vault) keepAnchored(ctx context.Context) {
	ticker := time.NewTicker(anchorEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		head, err := v.log.Sync(ctx)
		if err == nil && head.Index != v.lastAnchor.Load() {
			err = v.committer.submit(ctx, &change{batch: v.anchor(head), applied: func() {}})
		}
		if err != nil && !errors.Is(err, context.Canceled) {
			v.logger.Error("the head of the audit log could not be anchored in the store", "error", err)
		}
	}
}

// reconcile writes the outcomes of changes that were under way when the agent
// stopped: the store remembers which batches it applied.
func (v *Vault) reconcile(ctx context.Context) error {
	var outcomes []audit.Event
	for _, intent := range v.log.Unfinished() {
		records, _, err := v.backend.Get(ctx, []backend.Key{{Table: backend.Applied, ID: string(intent.Batch[:])}})
		if err != nil {
			return fmt.Errorf("finding out what became of a change that was under way: %w", err)
		}
		e := intent
		e.Time, e.Phase = v.now(), audit.Outcome
		if len(records) == 1 {
			e.Revision, e.Reason = uint64(records[0].Rev), "found done after a restart"
		} else {
			e.Decision, e.Reason = audit.Failed, "found not done after a restart"
		}
		outcomes = append(outcomes, e)
	}
	if len(outcomes) == 0 {
		return nil
	}
	_, err := v.logAll(ctx, outcomes)
	return err
}
