// SPDX-License-Identifier: Apache-2.0

package fuse_test

import (
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// again starts another daemon that is to mount in the same place, and returns
// what that said.
func (m *mounted) again() (*mounted, error) {
	m.t.Helper()
	other := &mounted{process: start(m.t, "daemon", 0, 0), Settings: m.Settings}
	return other, other.try("Mount", m.Settings, nil)
}

func TestClosingLeavesNothingBehind(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	m.user(1001).expect("Read", m.self("db/creds/password"), "hunter2", 0)
	m.unmount()
	for _, path := range []string{m.Dir, m.Private, m.SelfLink} {
		if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%s is still there: %v", path, err)
		}
	}
	if table := mounts(t); strings.Contains(table, filepath.Dir(m.Dir)) {
		t.Errorf("still mounted:\n%s", table)
	}
}

func TestClosingDoesNotWaitForUsers(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	u := m.user(1001)
	u.expect("Open", OpenArguments{Path: m.self("db/creds/password"), As: 1}, "", 0)
	u.expect("Open", OpenArguments{Path: m.self("db"), Flags: unix.O_PATH, As: 2}, "", 0)
	m.unmount()
	u.expect("Reopen", 1, "", unix.ENOTCONN)
	if table := mounts(t); strings.Contains(table, filepath.Dir(m.Dir)) {
		t.Errorf("still mounted:\n%s", table)
	}
}

func TestClosingAnswersThoseWhoWait(t *testing.T) {
	m := mount(t, func(s *Settings) { s.Deadline = 1 << 40 })
	m.call("Hold", uint32(1001), nil)
	var answer Result
	waiting := m.user(1001).client.Go("Part.Readlink", filepath.Join(m.Dir, "self"), &answer, nil)
	m.call("Await", RuleArguments{UID: 1001, Count: 1}, nil)
	m.unmount()
	if call := <-waiting.Done; call.Error != nil || answer.Errno == 0 {
		t.Errorf("answer %v, %v", answer, call.Error)
	}
}

func TestFoldersThatWereThereStay(t *testing.T) {
	m := mount(t, func(s *Settings) {
		if err := errors.Join(os.Mkdir(s.Dir, 0o755), os.Mkdir(s.Private, 0o700), os.Symlink("elsewhere", s.SelfLink)); err != nil {
			t.Fatal(err)
		}
	})
	m.unmount()
	for _, path := range []string{m.Dir, m.Private} {
		if entries, err := os.ReadDir(path); err != nil || len(entries) != 0 {
			t.Errorf("%s: %v, %v", path, entries, err)
		}
	}
}

func TestAKilledAgentsMountIsReplaced(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	u := m.user(1001)
	u.expect("Open", OpenArguments{Path: m.self("db/creds/password"), As: 1}, "", 0)
	for range 3 { // each leaves another one
		m.kill()
		u.expect("Read", m.self("db/creds/password"), "", unix.ENOTCONN)
		other, err := m.again()
		if err != nil {
			t.Fatal(err)
		}
		m = other
		m.put("db/creds", "password", "hunter3")
		u.expect("Read", m.self("db/creds/password"), "hunter3", 0)
	}
	u.expect("Reopen", 1, "", unix.ENOTCONN)
	if count := strings.Count(mounts(t), filepath.Dir(m.Dir)+"/"); count != 2 {
		t.Errorf("%d mounts, want the private and the public one:\n%s", count, mounts(t))
	}
	m.unmount()
}

func TestALiveAgentsMountIsNotTaken(t *testing.T) {
	m := mount(t)
	m.put("db/creds", "password", "hunter2")
	_, err := m.again()
	if err == nil || !strings.Contains(err.Error(), secret.ErrInUse.Error()) {
		t.Fatalf("a second agent mounted: %v", err)
	}
	if pid := strconv.Itoa(m.command.Process.Pid); !strings.Contains(err.Error(), pid) && kernelTellsServer(t) {
		t.Errorf("%q does not name process %s", err, pid)
	}
	m.user(1001).expect("Read", m.self("db/creds/password"), "hunter2", 0)
}

// kernelTellsServer reports whether descriptors of /dev/fuse say what they serve.
func kernelTellsServer(t *testing.T) bool {
	t.Helper()
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		t.Fatal(err)
	}
	release := strings.SplitN(unix.ByteSliceToString(name.Release[:]), ".", 3)
	major, _ := strconv.Atoi(release[0])
	minor, _ := strconv.Atoi(release[1])
	return major > 6 || major == 6 && minor >= 16
}

func TestSomebodyElsesMountIsNotTaken(t *testing.T) {
	requireMount(t)
	s := places(folder(t))
	if err := errors.Join(os.Mkdir(s.Dir, 0o755), unix.Mount("other", s.Dir, "tmpfs", 0, "")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(s.Dir, 0); err != nil {
			t.Error(err)
		}
	})
	err := start(t, "daemon", 0, 0).try("Mount", s, nil)
	if err == nil || !strings.Contains(err.Error(), "tmpfs") {
		t.Errorf("mounted over a tmpfs: %v", err)
	}
}

func TestAPlaceThatCannotBeMountedOnIsSaidSo(t *testing.T) {
	requireMount(t)
	for _, c := range []struct {
		name, want string
		prepare    func(*Settings) error
	}{
		{"relative", "not absolute", func(s *Settings) error { s.Dir = "here"; return nil }},
		{"a file", "no folder", func(s *Settings) error { return os.WriteFile(s.Dir, nil, 0o600) }},
		{"an open private folder", "0700", func(s *Settings) error { return os.Mkdir(s.Private, 0o755) }},
		{"a file instead of the link", "something else", func(s *Settings) error { return os.WriteFile(s.SelfLink, nil, 0o600) }},
		{"a missing parent", "no such file", func(s *Settings) error { s.Dir = filepath.Join(s.Dir, "a/b"); return nil }},
	} {
		s := places(folder(t))
		if err := c.prepare(&s); err != nil {
			t.Fatal(err)
		}
		before := mounts(t)
		err := start(t, "daemon", 0, 0).try("Mount", s, nil)
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
		if after := mounts(t); after != before {
			t.Errorf("%s: mounts before:\n%s\nand after:\n%s", c.name, before, after)
		}
	}
}

// mounts returns the mounts of this agent's type.
func mounts(t *testing.T) string {
	t.Helper()
	table, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	var ours strings.Builder
	for line := range strings.Lines(string(table)) {
		if strings.Contains(line, "fuse.keyhole") {
			ours.WriteString(line)
		}
	}
	return ours.String()
}

func TestTheMountSaysWhatItIsAndIsReadOnly(t *testing.T) {
	m := mount(t)
	for line := range strings.Lines(mounts(t)) {
		fields := strings.Fields(line)
		switch point := fields[4]; point {
		case m.Dir:
			if !strings.HasPrefix(fields[5], "ro,nosuid,nodev,noexec") {
				t.Errorf("the public mount is %s", fields[5])
			}
		case filepath.Join(m.Private, "fs"):
			if !strings.HasPrefix(fields[5], "rw,nosuid,nodev,noexec") {
				t.Errorf("the private mount is %s", fields[5])
			}
		}
		if strings.HasPrefix(fields[4], filepath.Dir(m.Dir)) &&
			(!strings.Contains(line, "- fuse.keyhole keyhole rw") || !strings.Contains(line, "default_permissions,allow_other")) {
			t.Errorf("the mount is %s", line)
		}
	}
}

// Without root the agent mounts through fusermount3. The test runs itself in a
// mount namespace where everybody may open /dev/fuse, as it usually is.
func TestWithoutRootTheHelperMounts(t *testing.T) {
	requireMount(t)
	if _, err := exec.LookPath("fusermount3"); err != nil {
		t.Skip("NOT TESTED: fusermount3 is missing: install fuse3")
	}
	const inside = "KEYHOLE_FUSE_TEST_NAMESPACE"
	if os.Getenv(inside) == "" {
		executable, err := os.Executable()
		if err != nil {
			t.Fatal(err)
		}
		command := exec.Command("unshare", "--mount", "--propagation", "private",
			executable, "-test.run", "^TestWithoutRootTheHelperMounts$", "-test.v")
		command.Env = append(os.Environ(), inside+"=yes")
		if output, err := command.CombinedOutput(); err != nil {
			t.Fatalf("%v\n%s", err, output)
		}
		return
	}
	device := filepath.Join(folder(t), "fuse")
	if err := errors.Join(
		unix.Mknod(device, unix.S_IFCHR|0o666, int(unix.Mkdev(10, 229))), os.Chmod(device, 0o666),
		unix.Mount(device, "/dev/fuse", "", unix.MS_BIND, ""),
	); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount("/dev/fuse", unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	const nobody = 65534 // the helper wants a user with a name
	dir := folder(t)
	if err := os.Chown(dir, nobody, nobody); err != nil {
		t.Fatal(err)
	}
	m := &mounted{process: start(t, "daemon", nobody, nobody), Settings: places(dir)}
	for range 2 {
		m.call("Mount", m.Settings, nil)
		m.put("db/creds", "password", "hunter2")
		u := m.user(nobody)
		u.expect("Read", m.self("db/creds/password"), "hunter2", 0)
		u.expect("Open", OpenArguments{Path: m.self("db/creds/password"), Flags: unix.O_RDWR}, "", unix.EROFS)
		m.user(1002).expect("Read", m.self("db/creds/password"), "", unix.EACCES)
		m.kill()
		m.process = start(t, "daemon", nobody, nobody)
	}
	m.call("Mount", m.Settings, nil)
	m.unmount()
	if table := mounts(t); strings.Contains(table, dir) {
		t.Errorf("still mounted:\n%s", table)
	}
}
