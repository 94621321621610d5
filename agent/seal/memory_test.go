// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// mappingFlags returns the VmFlags (proc_pid_smaps(5)) of the mapping that
// begins at an address, nil when none does.
func mappingFlags(t *testing.T, address uintptr) []string {
	t.Helper()
	file, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	begin := fmt.Sprintf("%x-", address)
	inside := false
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		switch {
		case strings.HasPrefix(lines.Text(), begin):
			inside = true
		case inside && fields[0] == "VmFlags:":
			return fields[1:]
		}
	}
	return nil
}

// lockedKiB returns VmLck of /proc/self/status.
func lockedKiB(t *testing.T) (n int) {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := bytes.Cut(status, []byte("VmLck:"))
	if _, err := fmt.Fscan(bytes.NewReader(rest), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

func TestKeysLieInLockedMemoryThatIsNeitherDumpedNorInherited(t *testing.T) {
	before := lockedKiB(t)
	k, _ := testCreate(t, testSlots(testKeyfile(t))...)
	if err := k.Protection(); err != nil {
		t.Skipf("the system does not protect keys: %v", err)
	}
	if during := lockedKiB(t); during != before+os.Getpagesize()/1024 {
		t.Errorf("%d KiB are locked, before it were %d", during, before)
	}
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(k.keys.arena.bytes)))
	flags := mappingFlags(t, begin)
	for _, flag := range []string{"lo", "dd", "wf"} { // locked, left out of dumps, wiped on fork
		if !slices.Contains(flags, flag) {
			t.Errorf("the keys' memory has the flags %v, without %s", flags, flag)
		}
	}
	for _, key := range [][]byte{k.keys.root, k.keys.index, k.keys.audit, k.keys.terms[0].key, k.keys.shared[0].key} {
		offset := uintptr(unsafe.Pointer(unsafe.SliceData(key))) - begin
		if offset >= uintptr(len(k.keys.arena.bytes)) || bytes.Equal(key, make([]byte, len(key))) {
			t.Errorf("a key lies %d bytes from the beginning of the locked memory, or is zero", offset)
		}
	}
	if err := k.Close(); err != nil {
		t.Fatal(err)
	}
	if after := lockedKiB(t); after != before {
		t.Errorf("%d KiB are locked after Close, before it were %d", after, before)
	}
}

// The thread gives up its power to lock memory beyond the limit, and the limit
// is none.
func TestMemoryThatCannotBeLockedIsReportedAndWorks(t *testing.T) {
	keyfile := testKeyfile(t)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unix.Rlimit{Cur: 0, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &limit); err != nil {
			t.Error(err)
		}
	})
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // and never unlocked: the thread ends with its capabilities
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var none [2]unix.CapUserData
		if err := unix.Capset(&header, &none[0]); err != nil {
			t.Error(err)
			return
		}
		k, _, err := Create(testStore, testSlots(keyfile)...)
		if err != nil {
			t.Error(err)
			return
		}
		if err := k.Protection(); !errors.Is(err, unix.EPERM) && !errors.Is(err, unix.ENOMEM) || !strings.Contains(err.Error(), "LimitMEMLOCK") {
			t.Errorf("got error %v", err)
		}
		if _, _, err := k.NewDataKey(Binding{Kind: KindPolicy}); err != nil {
			t.Error(err)
		}
		if err := k.Close(); err != nil {
			t.Error(err)
		}
	}()
	<-done
}

func TestAnArenaIsClearedBeforeItIsGivenBack(t *testing.T) {
	a, err := newArena(1)
	if err != nil {
		t.Fatal(err)
	}
	if len(a.bytes) != os.Getpagesize() {
		t.Errorf("%d bytes for one", len(a.bytes))
	}
	begin := uintptr(unsafe.Pointer(unsafe.SliceData(a.bytes)))
	for range 2 {
		if err := a.close(); err != nil {
			t.Fatal(err)
		}
	}
	if flags := mappingFlags(t, begin); slices.Contains(flags, "dd") {
		t.Errorf("the memory is still there, with the flags %v", flags)
	}
}

// child runs one test of this binary in a process of its own.
func child(t *testing.T, test, environment string) {
	t.Helper()
	command := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+test+"$", "-test.v")
	command.Env = append(os.Environ(), environment)
	output, err := command.CombinedOutput()
	if err != nil || !bytes.Contains(output, []byte("--- PASS: "+test)) {
		t.Errorf("%s: %v\n%s", environment, err, output)
	}
}

const hardenedChild = "KEYHOLE_TEST_HARDENED=1"

func TestAHardenedProcessIsNotDumped(t *testing.T) {
	if name, value, _ := strings.Cut(hardenedChild, "="); os.Getenv(name) != value {
		child(t, t.Name(), hardenedChild)
		return
	}
	if err := HardenProcess(); err != nil {
		t.Fatal(err)
	}
	dumpable, err := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	if err != nil || dumpable != 0 {
		t.Errorf("dumpable is %d, %v", dumpable, err)
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_CORE, &limit); err != nil || limit != (unix.Rlimit{}) {
		t.Errorf("core files are limited to %v, %v", limit, err)
	}
}

// Everything but passwords uses what FIPS 140-3 approves.
func TestAKeyfileStoreWorksInFIPSMode(t *testing.T) {
	const fips = "GODEBUG=fips140=only"
	if os.Getenv("GODEBUG") != "fips140=only" {
		child(t, t.Name(), fips)
		return
	}
	keyfile := testKeyfile(t)
	k, lock := testCreate(t, testSlots(keyfile)[:1]...)
	b := Binding{Kind: KindVersion, ID: secret.ID{1}, Version: 1}
	key, wrapped, err := k.NewDataKey(b)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := key.Seal(b, FieldPayload, []byte("value"))
	if err != nil {
		t.Fatal(err)
	}
	k = testUnlock(t, lock, keyfile)
	key, err = k.OpenDataKey(b, wrapped)
	if err != nil {
		t.Fatal(err)
	}
	if plaintext, err := key.Open(b, FieldPayload, payload); err != nil || string(plaintext) != "value" {
		t.Errorf("opened %q, %v", plaintext, err)
	}
	k.Locate(secret.Path{})
}
