// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestStatusIsRead(t *testing.T) {
	s, err := parseStatus([]byte("Name:\tTgid:\\n\tx\nUmask:\t0022\nTgid:\t42\nNgid:\t0\nPid:\t43\n" +
		"Uid:\t1\t2\t3\t4\nGid:\t5\t6\t7\t8\nFDSize:\t64\nGroups:\t4 24 4294967294 \nKthread:\t0\n"))
	must(t, err)
	want := task{process: 42, ids: ids{ruid: 1, euid: 2, suid: 3, fsuid: 4, rgid: 5, egid: 6, sgid: 7, fsgid: 8}}
	if s.task != want {
		t.Errorf("read %+v", s.task)
	}
	if groups, err := parseGroups(s.groups); err != nil || !slices.Equal(groups, []uint32{4, 24, 4294967294}) {
		t.Errorf("groups %v, %v", groups, err)
	}
}

func TestAMalformedStatusIsRefused(t *testing.T) {
	good := "Tgid:\t42\nUid:\t1\t1\t1\t1\nGid:\t1\t1\t1\t1\nGroups:\t\n"
	if _, err := parseStatus([]byte(good)); err != nil {
		t.Fatal(err)
	}
	for _, spoil := range [][2]string{
		{"Tgid:\t42\n", ""},
		{"42", "0"},
		{"42", "-1"},
		{"Uid:\t1\t1\t1\t1\n", ""},
		{"Uid:\t1\t1", "Uid:\t1"},
		{"Gid:\t1", "Gid:\t-1"},
		{"Gid:\t1", "Gid:\t4294967296"},
		{"Groups:\t", "Groups:\tx"},
	} {
		if s, err := parseStatus([]byte(strings.Replace(good, spoil[0], spoil[1], 1))); err == nil {
			t.Errorf("%q in place of %q is read as %+v", spoil[1], spoil[0], s)
		}
	}
}

func TestACommandCannotForgeTheState(t *testing.T) {
	s, err := parseStat([]byte("7 (a) S 0 0 0 0 0 2097152 (\n) R 1 7 7 0 -1 4194304 0 0 0 0 0 0 0 0 20 0 1 0 99 0 0 0 1 1 12345 0 0\n"))
	must(t, err)
	if s.kernelThread || s.start != 99 || s.stack != 12345 {
		t.Errorf("read %+v", s)
	}
}

func TestALongFileIsReadWhole(t *testing.T) {
	fd, err := unix.Open(t.TempDir(), unix.O_PATH|unix.O_CLOEXEC, 0)
	must(t, err)
	defer func() { must(t, unix.Close(fd)) }()
	for _, size := range []int{0, 4095, 4096, 4097, 700_000, maxProcFile - 1} {
		want := strings.Repeat("x", size)
		name := t.TempDir() + "/file"
		must(t, os.WriteFile(name, []byte(want), 0o600))
		if got, err := readAt(fd, name); err != nil || string(got) != want {
			t.Errorf("%d bytes of %d are read: %v", len(got), size, err)
		}
	}
	name := t.TempDir() + "/file"
	must(t, os.WriteFile(name, make([]byte, maxProcFile), 0o600))
	if _, err := readAt(fd, name); err == nil {
		t.Error("a file of any length is read")
	}
}

func FuzzStatus(f *testing.F) {
	own, err := os.ReadFile("/proc/self/status")
	must(f, err)
	f.Add(own)
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStatus(text)
		if err != nil {
			if s != (status{}) {
				t.Errorf("something was read in spite of %v", err)
			}
			return
		}
		if s.task.process <= 0 {
			t.Errorf("process %d", s.task.process)
		}
		if _, err := parseGroups(s.groups); err != nil {
			t.Error(err)
		}
	})
}

func FuzzStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	must(f, err)
	f.Add(own)
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := parseStat(text)
		if err != nil {
			if s != (stat{}) {
				t.Errorf("something was read in spite of %v", err)
			}
			return
		}
		// Whatever command is put in front of the fields does not change them.
		if at := strings.LastIndexByte(string(text), ')'); at >= 0 {
			again, err := parseStat([]byte("1 (x) R 0)" + string(text[at+1:])))
			if err != nil || again != s {
				t.Errorf("%+v and %+v, %v", s, again, err)
			}
		}
	})
}
