// SPDX-License-Identifier: Apache-2.0

package process

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// maxProcFile bounds what is read of a file in /proc, in bytes. The longest is
// status, with up to 65,536 supplementary groups.
const maxProcFile = 1 << 20

// errMalformed says that a file in /proc is not as proc(5) describes it.
var errMalformed = errors.New("unexpected content")

// status is what proc_pid_status(5) tells.
type status struct {
	task   task
	groups string // as printed: ascending, separated by spaces
}

// stat is what proc_pid_stat(5) tells.
type stat struct {
	kernelThread bool
	start        uint64 // clock ticks after boot
	stack        uint64 // address of the bottom of the stack, chosen at random by each exec
}

func procTask(folder int, name string) (task, error) {
	text, err := readAt(folder, name)
	if err != nil {
		return task{}, err
	}
	s, err := parseStatus(text)
	return s.task, err
}

// readAt reads a whole file of a folder in /proc.
func readAt(folder int, name string) ([]byte, error) {
	fd, err := retry(func() (int, error) {
		return unix.Openat(folder, name, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NOCTTY, 0)
	})
	if err != nil {
		return nil, err
	}
	defer unix.Close(fd)
	text := make([]byte, 0, 4096)
	for {
		if len(text) == maxProcFile {
			return nil, fmt.Errorf("%w in %s: longer than %d bytes", errMalformed, name, maxProcFile)
		}
		if len(text) == cap(text) {
			text = append(make([]byte, 0, min(4*cap(text), maxProcFile)), text...)
		}
		n, err := retry(func() (int, error) { return unix.Read(fd, text[len(text):cap(text)]) })
		if err != nil {
			return nil, err
		}
		if n == 0 {
			return text, nil
		}
		text = text[:len(text)+n]
	}
}

// retry repeats a system call that a signal interrupted.
func retry(call func() (int, error)) (int, error) {
	for {
		if n, err := call(); !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// parseStatus reads /proc/<pid>/status. Each line is a name, a colon, a tab and
// the value; the kernel escapes line feeds in the one value that a process
// chooses, Name, which comes first.
func parseStatus(text []byte) (status, error) {
	var s status
	var process, users, groups bool
	for line := range bytes.Lines(text) {
		name, rest, found := bytes.Cut(line, []byte(":\t"))
		if !found {
			continue
		}
		var value string
		switch string(name) {
		case "Tgid", "Uid", "Gid", "Groups":
			value = strings.TrimSuffix(string(rest), "\n")
		}
		var err error
		switch string(name) {
		case "Tgid":
			s.task.process, err = strconv.Atoi(value)
			process = true
		case "Uid":
			i := &s.task.ids
			err = parseIDs(value, &i.ruid, &i.euid, &i.suid, &i.fsuid)
			users = true
		case "Gid":
			i := &s.task.ids
			err = parseIDs(value, &i.rgid, &i.egid, &i.sgid, &i.fsgid)
			groups = true
		case "Groups":
			s.groups = strings.TrimSpace(value)
			_, err = parseGroups(s.groups)
		}
		if err != nil {
			return status{}, fmt.Errorf("%w in status: %s: %w", errMalformed, name, err)
		}
	}
	if !process || !users || !groups || s.task.process <= 0 {
		return status{}, fmt.Errorf("%w in status: no Tgid, Uid or Gid", errMalformed)
	}
	return s, nil
}

func parseIDs(value string, into ...*uint32) error {
	fields := strings.Fields(value)
	if len(fields) != len(into) {
		return fmt.Errorf("%d ids instead of %d", len(fields), len(into))
	}
	for i, field := range fields {
		id, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return err
		}
		*into[i] = uint32(id)
	}
	return nil
}

func parseGroups(value string) ([]uint32, error) {
	fields := strings.Fields(value)
	groups := make([]uint32, len(fields))
	for i, field := range fields {
		id, err := strconv.ParseUint(field, 10, 32)
		if err != nil {
			return nil, err
		}
		groups[i] = uint32(id)
	}
	return groups, nil
}

// parseStat reads /proc/<pid>/stat: fields separated by spaces, of which the
// second is the command in parentheses, which may itself hold both. Fields are
// counted from 1: 9 is flags, 22 starttime, 28 startstack.
func parseStat(text []byte) (stat, error) {
	const (
		kernelThreadFlag = 0x00200000 // PF_KTHREAD in include/linux/sched.h
		third            = 3          // the number of the first field after the command
	)
	end := bytes.LastIndexByte(text, ')')
	if end < 0 {
		return stat{}, fmt.Errorf("%w in stat: no command", errMalformed)
	}
	fields := strings.Fields(string(text[end+1:]))
	number := func(field int) (uint64, error) {
		if field-third >= len(fields) {
			return 0, fmt.Errorf("%w in stat: no field %d", errMalformed, field)
		}
		n, err := strconv.ParseUint(fields[field-third], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("%w in stat: field %d: %w", errMalformed, field, err)
		}
		return n, nil
	}
	flags, err := number(9)
	if err != nil {
		return stat{}, err
	}
	start, err := number(22)
	if err != nil {
		return stat{}, err
	}
	stack, err := number(28)
	if err != nil {
		return stat{}, err
	}
	return stat{kernelThread: flags&kernelThreadFlag != 0, start: start, stack: stack}, nil
}
