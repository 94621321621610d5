// SPDX-License-Identifier: Apache-2.0

package audit

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// crashDir names the folder in the environment of the process that is killed.
const crashDir = "KEYHOLE_AUDIT_CRASH_DIR"

// appendUntilKilled appends from several goroutines, and says which records
// were promised to be durable. It never returns.
func appendUntilKilled(dir string) {
	l, err := Open(Config{Dir: dir, Key: testKey, SegmentBytes: 16 << 10, SyncEvery: time.Millisecond})
	if err != nil {
		panic(err)
	}
	go func() {
		for n := 0; ; n++ {
			if err := l.AppendAll([]Event{read(n), read(n), read(n)}); err != nil {
				panic(err)
			}
		}
	}()
	for {
		head, err := l.Sync(context.Background())
		if err != nil {
			panic(err)
		}
		if _, err := fmt.Fprintf(os.Stdout, "%x\n", head.Append(nil)); err != nil {
			panic(err)
		}
	}
}

func TestAKilledAppenderLosesNothingThatWasPromised(t *testing.T) {
	dir := t.TempDir()
	var anchor *Head
	for round := range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), crashDir+"="+dir)
		var complaints bytes.Buffer
		cmd.Stderr = &complaints
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; lines.Scan(); n++ {
			if n == 20+7*round {
				if err := cmd.Process.Kill(); err != nil {
					t.Fatal(err)
				}
			}
			var kept []byte
			if _, err := fmt.Sscanf(lines.Text(), "%x", &kept); err != nil {
				break // the last line, cut off
			}
			head, err := ParseHead(kept)
			if err != nil {
				break
			}
			anchor = &head
		}
		_ = cmd.Wait() // it was killed
		if complaints.Len() > 0 {
			t.Fatal(complaints.String())
		}
		report := mustVerify(t, dir, anchor)
		if report.Head.Index < anchor.Index {
			t.Fatalf("round %d: %d of %d records", round, report.Head.Index, anchor.Index)
		}
	}
	c := config(dir)
	c.Anchor = anchor
	l := mustOpen(t, c)
	if found := l.Found(); len(found.Problems) > 0 {
		t.Error(found.Problems)
	}
	head := mustSync(t, l)
	mustVerify(t, dir, &head)
}
