// SPDX-License-Identifier: Apache-2.0

package backendtest

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/keyhole-agent/keyhole/backend"
)

// The environment that tells the child of RunKilled what to do.
const (
	killedFolder = "KEYHOLE_BACKENDTEST_FOLDER" // where to write
	killedFirst  = "KEYHOLE_BACKENDTEST_FIRST"  // the number of the first batch
)

const killedWriters = 4

// RunKilled kills a writing process with SIGKILL at random moments, again and
// again on the same store, and checks after each that every acknowledged batch
// is there, that every other one is there whole or not at all, and that asking
// again applies those once. It shows nothing about a loss of power: the kernel
// keeps what a killed process wrote, synced or not.
//
// The test that calls it is executed again as the writing process, so it must
// do nothing before.
func RunKilled(t *testing.T, open func(folder string) (backend.Backend, error)) {
	t.Helper()
	if folder := os.Getenv(killedFolder); folder != "" {
		writeUntilKilled(t, open, folder)
		return
	}
	rounds := 15
	if testing.Short() {
		rounds = 5
	}
	folder := t.TempDir()
	first := 0
	for range rounds {
		acknowledged := killWriter(t, folder, first)
		highest := first
		for n := range acknowledged {
			highest = max(highest, n)
		}
		b, err := open(folder)
		if err != nil {
			t.Fatalf("after the kill: %v", err)
		}
		checkKilled(t, b, acknowledged, first, highest+2*killedWriters)
		closeBackend(t, b)
		first = highest + 2*killedWriters
	}
}

// numbered is batch n: two records that must both be there or neither.
func numbered(n int) backend.Batch {
	batch := backend.Batch{ID: batchID(n)}
	for _, table := range []backend.Table{backend.Secrets, backend.Payloads} {
		body := make([]byte, 300+n%1000)
		binary.BigEndian.PutUint64(body, uint64(n))
		batch.Ops = append(batch.Ops, backend.Op{Record: backend.Record{
			Key: backend.Key{Table: table, ID: fmt.Sprintf("%012d", n)}, Body: body,
		}})
	}
	return batch
}

// writeUntilKilled is the child: it commits batches and tells their numbers.
func writeUntilKilled(t *testing.T, open func(folder string) (backend.Backend, error), folder string) {
	first, err := strconv.Atoi(os.Getenv(killedFirst))
	if err != nil {
		t.Fatal(err)
	}
	b, err := open(folder)
	if err != nil {
		t.Fatal(err)
	}
	defer closeBackend(t, b)
	pipe := os.NewFile(3, "acknowledgements")
	var next atomic.Int64
	next.Store(int64(first) - 1)
	var wg sync.WaitGroup
	for range killedWriters {
		wg.Go(func() {
			for {
				n := int(next.Add(1))
				if _, err := b.Commit(t.Context(), []backend.Batch{numbered(n)}); err != nil {
					t.Errorf("Commit: %v", err)
					return
				}
				if _, err := fmt.Fprintln(pipe, n); err != nil {
					return // nobody listens any more
				}
			}
		})
	}
	wg.Wait()
}

// killWriter runs the child, kills it and returns what it had acknowledged.
func killWriter(t *testing.T, folder string, first int) map[int]bool {
	t.Helper()
	var pattern []string
	for part := range strings.SplitSeq(t.Name(), "/") {
		pattern = append(pattern, "^"+regexp.QuoteMeta(part)+"$")
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := reader.Close(); err != nil {
			t.Error(err)
		}
	}()
	child := exec.CommandContext(context.WithoutCancel(t.Context()), os.Args[0], "-test.run="+strings.Join(pattern, "/"), "-test.count=1") //nolint:gosec // this test itself
	child.Env = append(os.Environ(), killedFolder+"="+folder, killedFirst+"="+strconv.Itoa(first))
	child.ExtraFiles = []*os.File{writer}
	var output strings.Builder
	child.Stdout, child.Stderr = &output, &output
	if err := errors.Join(child.Start(), writer.Close()); err != nil {
		t.Fatal(err)
	}
	acknowledged := map[int]bool{}
	lines := bufio.NewScanner(reader)
	// Whatever the child does when the last of these arrives, it is stopped in.
	for range 1 + rand.IntN(300) { //nolint:gosec // a moment, no secret
		if !lines.Scan() {
			break
		}
		note(t, acknowledged, lines.Text())
	}
	if err := child.Process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
		t.Error(err)
	}
	for lines.Scan() { // acknowledged before the kill, read after it
		note(t, acknowledged, lines.Text())
	}
	if err := child.Wait(); err == nil || len(acknowledged) == 0 {
		t.Fatalf("the writer ended by itself: %v\n%s", err, output.String())
	}
	return acknowledged
}

func note(t *testing.T, acknowledged map[int]bool, line string) {
	t.Helper()
	n, err := strconv.Atoi(line)
	if err != nil {
		t.Fatalf("the writer said %q", line)
	}
	acknowledged[n] = true
}

func checkKilled(t *testing.T, b backend.Backend, acknowledged map[int]bool, first, end int) {
	t.Helper()
	for n := first; n < end; n++ {
		batch := numbered(n)
		keys := []backend.Key{batch.Ops[0].Record.Key, batch.Ops[1].Record.Key}
		found := get(t.Context(), t, b, keys...)
		if len(found) == 1 || len(found) == 0 && acknowledged[n] {
			t.Fatalf("batch %d (acknowledged: %v) left %d of its 2 records", n, acknowledged[n], len(found))
		}
		result := commit(t.Context(), t, b, batch)[0]
		if result.Replayed != (len(found) == 2) {
			t.Fatalf("batch %d had left %d records, and asking again says %+v", n, len(found), result)
		}
		var want []backend.Record
		for _, op := range batch.Ops {
			op.Record.Rev = result.Seq
			want = append(want, op.Record)
		}
		requireRecords(t, get(t.Context(), t, b, keys...), want)
	}
	if checker, ok := b.(backend.Checker); ok {
		if err := checker.Check(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}
