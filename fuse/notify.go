// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/sys/unix"
)

// Notifications to the kernel (uapi/linux/fuse.h). All begin with
//
//	length u32, code i32, unique u64 = 0
//
// and go on with
//
//	INVAL_INODE (2): node u64, offset i64, length i64
//	INVAL_ENTRY (3): parent u64, name length u32, flags u32, name, NUL
const (
	notifyInvalInode = 2
	notifyInvalEntry = 3
)

// dropContent makes the kernel forget a file's bytes and attributes: offset 0
// and length 0 mean all.
func (d *device) dropContent(id uint64) error {
	message := notification(notifyInvalInode)
	message = binary.NativeEndian.AppendUint64(message, id)
	message = binary.NativeEndian.AppendUint64(message, 0)
	message = binary.NativeEndian.AppendUint64(message, 0)
	return d.notify("content", message)
}

// dropName makes the kernel forget what a name in a directory stands for, and
// unmounts what is mounted below it. The name must not be that of a view.
func (d *device) dropName(parent uint64, name string) error {
	message := notification(notifyInvalEntry)
	message = binary.NativeEndian.AppendUint64(message, parent)
	message = binary.NativeEndian.AppendUint32(message, uint32(len(name)))
	message = binary.NativeEndian.AppendUint32(message, 0)
	message = append(append(message, name...), 0)
	return d.notify("name", message)
}

func notification(code uint32) []byte {
	message := make([]byte, 0, 64)
	message = binary.NativeEndian.AppendUint32(message, 0) // notify knows it
	message = binary.NativeEndian.AppendUint32(message, code)
	return binary.NativeEndian.AppendUint64(message, 0)
}

// notify writes a notification. It may wait until the kernel has the answer to a
// request that is in work, so no handler and no holder of a lock may call it.
// That the kernel does not know what it is about (ENOENT) is no error.
func (d *device) notify(what string, message []byte) error {
	binary.NativeEndian.PutUint32(message, uint32(len(message)))
	if _, err := unix.Write(d.fd, message); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("making the kernel forget a %s: %w", what, err)
	}
	return nil
}
