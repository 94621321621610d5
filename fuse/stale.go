// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// mounted is one line of the mount table.
type mounted struct {
	device string // "major:minor" of the superblock
	kind   string // the filesystem's type
}

// mountAt returns what is mounted at path, the topmost if there are several.
// path has no symbolic links.
func mountAt(path string) (m mounted, found bool, err error) {
	table, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return m, false, fmt.Errorf("reading the mount table: %w", err)
	}
	defer table.Close()
	lines := bufio.NewScanner(table)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		if point, line, ok := parseMount(lines.Text()); ok && point == path {
			m, found = line, true
		}
	}
	if err := lines.Err(); err != nil {
		return m, false, fmt.Errorf("reading the mount table: %w", err)
	}
	return m, found, nil
}

// deviceAt returns the device of what is mounted at path, "" if nothing is or
// the mount table cannot be read.
func deviceAt(path string) string {
	m, found, err := mountAt(path)
	if err != nil || !found {
		return ""
	}
	return m.device
}

// parseMount takes one line of /proc/self/mountinfo (proc_pid_mountinfo(5))
// apart:
//
//	ID parent major:minor root point options [optional]… - type source options
func parseMount(line string) (point string, m mounted, ok bool) {
	before, after, ok := strings.Cut(line, " - ")
	fields, rest := strings.Fields(before), strings.Fields(after)
	if !ok || len(fields) < 6 || len(rest) < 1 {
		return "", mounted{}, false
	}
	return unescape(fields[4]), mounted{device: fields[2], kind: rest[0]}, true
}

// unescape undoes the mount table's octal escapes of space, tab, newline and
// backslash.
func unescape(text string) string {
	var plain strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+3 < len(text) {
			if code, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				plain.WriteByte(byte(code))
				i += 3
				continue
			}
		}
		plain.WriteByte(text[i])
	}
	return plain.String()
}

// clearStale removes mounts at path that a killed agent left behind. The error
// is secret.ErrInUse when the mount is alive, or is not one of ours.
func clearStale(path string) error {
	for {
		m, found, err := mountAt(path)
		if err != nil || !found {
			return err
		}
		if m.kind != mountType {
			return fmt.Errorf("%w: a filesystem of type %s is mounted at %s; unmount it or choose another folder", secret.ErrInUse, m.kind, path)
		}
		if pid := serverOf(m.device); pid != 0 {
			return fmt.Errorf("%w: process %d serves the mount at %s", secret.ErrInUse, pid, path)
		}
		var stat unix.Statfs_t
		if err := unix.Statfs(path, &stat); !errors.Is(err, unix.ENOTCONN) && !errors.Is(err, unix.ECONNABORTED) {
			return fmt.Errorf("%w: the mount at %s is being served", secret.ErrInUse, path)
		}
		if os.Geteuid() != 0 {
			err = fusermountDetach(path, m.device)
		} else if err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			err = fmt.Errorf("removing the mount that a killed agent left at %s: %w", path, err)
		}
		if err != nil {
			return err
		}
	}
}

// serverOf returns the process that holds the connection of a superblock, 0 when
// it is not found: before Linux 6.16 descriptors do not tell, and without root
// only those of the same user can be seen.
func serverOf(device string) int {
	_, minor, _ := strings.Cut(device, ":")
	links, err := filepath.Glob("/proc/[0-9]*/fd/[0-9]*")
	if err != nil {
		return 0
	}
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != "/dev/fuse" {
			continue
		}
		process := filepath.Dir(filepath.Dir(link))
		info, err := os.ReadFile(filepath.Join(process, "fdinfo", filepath.Base(link)))
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(info)) {
			name, value, _ := strings.Cut(line, ":")
			if name == "fuse_connection" && strings.TrimSpace(value) == minor {
				pid, _ := strconv.Atoi(filepath.Base(process))
				return pid
			}
		}
	}
	return 0
}
