// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"bufio"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"testing"
	"unsafe"
)

func TestRepliesAreMadeInProtectedMemory(t *testing.T) {
	buffers, err := newLockedBuffers(2, 1<<16, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := buffers.close(); err != nil {
			t.Error(err)
		}
	}()
	flags := flagsOf(t, uintptr(unsafe.Pointer(&buffers.arena[0])))
	for flag, meaning := range map[string]string{"lo": "locked", "dd": "not dumped", "wf": "wiped on fork"} {
		if !strings.Contains(flags+" ", " "+flag+" ") {
			t.Errorf("it is not %s: %s", meaning, flags)
		}
	}
	first, second := buffers.take(), buffers.take()
	if len(first) != 1<<16 || cap(first) != 1<<16 || &first[0] == &second[0] {
		t.Errorf("buffers of %d and %d bytes", len(first), len(second))
	}
	buffers.giveBack(first)
	buffers.giveBack(second)
}

// flagsOf returns what the kernel says of the mapping that begins at address
// (proc_pid_smaps(5), VmFlags).
func flagsOf(t *testing.T, address uintptr) string {
	t.Helper()
	maps, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer maps.Close()
	found := false
	lines := bufio.NewScanner(maps)
	for lines.Scan() {
		found = found || strings.HasPrefix(lines.Text(), fmt.Sprintf("%x-", address))
		if flags, ok := strings.CutPrefix(lines.Text(), "VmFlags:"); ok && found {
			return flags
		}
	}
	t.Fatalf("no mapping at %x", address)
	return ""
}
