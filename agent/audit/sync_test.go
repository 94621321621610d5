// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"context"
	"errors"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/keyhole-agent/keyhole/secret"
)

func TestABatchIsWrittenInOnePieceAndAGroupCostsTwoSyncs(t *testing.T) {
	c := config(t.TempDir())
	c.SegmentBytes, c.SyncEvery = 1<<20, time.Hour
	l := mustOpen(t, c)
	mustSync(t, l)
	before := l.Stats()
	for _, phase := range []Phase{Intent, Outcome} {
		var group []Event
		for n := range 100 {
			group = append(group, change(byte(n), phase))
		}
		if err := l.AppendAll(group); err != nil {
			t.Fatal(err)
		}
		mustSync(t, l)
		mustSync(t, l) // nothing is left to do
	}
	after := l.Stats()
	if syncs, n := after.Syncs-before.Syncs, after.Records-before.Records; syncs != 2 || n != 200 || after.TimedSyncs != 0 {
		t.Errorf("%d syncs of %d records, %d timed", syncs, n, after.TimedSyncs)
	}
}

func TestACloseMakesEverythingDurableAndEndsAppending(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	c.SyncEvery = time.Hour
	l := mustOpen(t, c)
	mustAppend(t, l, read(1))
	mustClose(t, l)
	mustClose(t, l)
	if l.synced != l.head {
		t.Errorf("durable up to %v of %v", l.synced, l.head)
	}
	if err := l.Append(read(2)); !errors.Is(err, secret.ErrUnavailable) {
		t.Errorf("appending: %v", err)
	}
	if l.Health() == nil {
		t.Error("a closed log is healthy")
	}
	if entries, _ := filepath.Glob(filepath.Join(dir, "*"+partSuffix)); len(entries) > 0 {
		t.Errorf("left over: %v", entries)
	}
}

func TestRecordsReachTheDiskByThemselves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := mustOpen(t, config(t.TempDir()))
		mustAppend(t, l, read(1))
		time.Sleep(DefaultSyncEvery + time.Millisecond)
		synctest.Wait()
		if stats := l.Stats(); stats.TimedSyncs != 1 || l.synced != l.head {
			t.Errorf("stats %+v, durable up to %d of %d", stats, l.synced.Index, l.head.Index)
		}
		time.Sleep(time.Hour)
		synctest.Wait()
		if stats := l.Stats(); stats.TimedSyncs != 1 {
			t.Errorf("an idle log synced %d times", stats.TimedSyncs)
		}
		mustClose(t, l)
	})
}

func TestAStrictReadReturnsDurable(t *testing.T) {
	c := config(t.TempDir())
	c.StrictReads, c.SyncEvery = true, time.Hour
	l := mustOpen(t, c)
	for n := range 3 {
		mustAppend(t, l, read(n))
		if l.synced != l.head {
			t.Errorf("durable up to %d of %d", l.synced.Index, l.head.Index)
		}
	}
}

func TestManyAppendersAndSyncersShareOneLog(t *testing.T) {
	dir := t.TempDir()
	c := config(dir)
	c.SegmentBytes, c.SyncEvery = 16<<10, time.Millisecond
	l := mustOpen(t, c)
	const workers, each = 8, 60
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			for n := range each {
				var err error
				switch {
				case n%5 == 0:
					err = l.AppendAll([]Event{read(w*each + n)})
				case n%7 == 0:
					err = l.Deny(read(w*each + n))
				default:
					err = l.Append(read(w*each + n))
				}
				if err != nil {
					t.Error(err)
				}
				if n%10 == 0 {
					if _, err := l.Sync(context.Background()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	group.Wait()
	mustClose(t, l)
	head := l.Head()
	mustVerify(t, dir, &head)
	total := 0
	for _, r := range records(t, dir) {
		total += max(r.Count, 1)
	}
	if total != workers*each {
		t.Errorf("%d events, want %d", total, workers*each)
	}
}

func TestSyncEndsWithItsContext(t *testing.T) {
	l := mustOpen(t, config(t.TempDir()))
	mustAppend(t, l, read(1))
	l.syncing <- struct{}{} // somebody waits for a slow disk
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := l.Sync(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
	<-l.syncing
}
