// SPDX-License-Identifier: Apache-2.0

package fusetest

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// OpenReadClose opens a file, reads it in one piece and closes it, count times:
// three system calls each, and none besides. The file is at most as large as
// buffer.
func OpenReadClose(path string, buffer []byte, count int) error {
	for range count {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("opening %s: %w", path, err)
		}
		if _, err := unix.Read(fd, buffer); err != nil {
			return fmt.Errorf("reading %s: %w", path, err)
		}
		if err := unix.Close(fd); err != nil {
			return fmt.Errorf("closing %s: %w", path, err)
		}
	}
	return nil
}
