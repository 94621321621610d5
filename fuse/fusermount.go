// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// helper mounts for users who may not: it belongs to fuse3 and is set-uid root.
const helper = "fusermount3"

// helperTimeout bounds how long the helper may take.
const helperTimeout = 10 * time.Second

// fusermount mounts on dir without root, read-only and for one's own processes
// only, unless /etc/fuse.conf lets users admit others. The helper opens
// /dev/fuse, mounts, and sends the descriptor over the socket whose number is in
// _FUSE_COMMFD.
func fusermount(dir string) (int, error) {
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("making a socket for %s: %w", helper, err)
	}
	ours, theirs := os.NewFile(uintptr(pair[0]), "socket"), os.NewFile(uintptr(pair[1]), "socket")
	defer ours.Close()
	options := fmt.Sprintf("ro,nosuid,nodev,noexec,default_permissions,fsname=%s,subtype=%s,max_read=%d",
		mountSource, strings.TrimPrefix(mountType, "fuse."), maxRead)
	if othersAdmitted("/etc/fuse.conf") {
		options += ",allow_other"
	}
	err = runHelper(theirs, "-o", options, "--", dir)
	if err := errors.Join(err, theirs.Close()); err != nil {
		return -1, err
	}
	fd, err := receiveDescriptor(int(ours.Fd()))
	if err != nil {
		return -1, fmt.Errorf("receiving the mount from %s: %w", helper, err)
	}
	return fd, nil
}

// runHelper runs fusermount3; socket may be nil. Its complaints are the error's
// text.
func runHelper(socket *os.File, arguments ...string) error {
	ctx, cancel := context.WithTimeout(context.Background(), helperTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, helper, arguments...)
	var complaints bytes.Buffer
	command.Stderr = &complaints
	if socket != nil {
		command.ExtraFiles = []*os.File{socket}
		command.Env = append(os.Environ(), "_FUSE_COMMFD=3")
	}
	err := command.Run()
	switch {
	case errors.Is(err, exec.ErrNotFound):
		return fmt.Errorf("%w: %s is missing: install fuse3, or start the agent as root", secret.ErrUnavailable, helper)
	case err != nil:
		return fmt.Errorf("%w: %s: %w: %s", secret.ErrUnavailable, helper, err, strings.TrimSpace(complaints.String()))
	}
	return nil
}

func receiveDescriptor(socket int) (int, error) {
	var data [1]byte
	control := make([]byte, unix.CmsgSpace(4))
	_, length, _, _, err := unix.Recvmsg(socket, data[:], control, unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("receiving a descriptor: %w", err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:length])
	if err != nil {
		return -1, fmt.Errorf("receiving a descriptor: %w", err)
	}
	if len(messages) != 1 {
		return -1, fmt.Errorf("%w: no descriptor came", secret.ErrUnavailable)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil {
		return -1, fmt.Errorf("receiving a descriptor: %w", err)
	}
	if len(fds) != 1 {
		return -1, fmt.Errorf("%w: %d descriptors instead of one", secret.ErrUnavailable, len(fds))
	}
	return fds[0], nil
}

// othersAdmitted reports whether users may use allow_other.
func othersAdmitted(path string) bool {
	config, err := os.Open(filepath.Clean(path))
	if err != nil {
		return false // no file: the default, which is no
	}
	defer config.Close()
	lines := bufio.NewScanner(config)
	for lines.Scan() {
		if strings.TrimSpace(lines.Text()) == "user_allow_other" {
			return true
		}
	}
	return false
}

// fusermountDetach unmounts what the helper mounted. While it is busy, the
// connection is ended first, where the kernel's control files are mounted.
func fusermountDetach(dir, device string) error {
	if deviceAt(dir) != device {
		return nil
	}
	if err := runHelper(nil, "-u", "--", dir); err == nil {
		return nil
	}
	_, minor, _ := strings.Cut(device, ":")
	abort := filepath.Join("/sys/fs/fuse/connections", minor, "abort")
	aborted := os.WriteFile(abort, []byte("1"), 0)
	if err := runHelper(nil, "-u", "-z", "--", dir); err != nil {
		return errors.Join(err, aborted)
	}
	return nil
}
