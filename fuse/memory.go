// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"errors"
	"fmt"
	"log/slog"

	"golang.org/x/sys/unix"
)

// bulkBuffers is how many replies with a payload are made at once. Making them
// waits for the local store alone, so a few are enough.
const bulkBuffers = 8

// lockedBuffers are buffers for secret bytes, in memory of their own that is not
// swapped, not dumped, and empty in a forked child.
type lockedBuffers struct {
	arena []byte
	free  chan []byte
}

// newLockedBuffers makes count buffers of size bytes, a multiple of the page's.
// Without the right to lock that much memory they may be swapped, and the log
// says so.
func newLockedBuffers(count, size int, log *slog.Logger) (*lockedBuffers, error) {
	arena, err := unix.Mmap(-1, 0, count*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("allocating %d bytes for replies: %w", count*size, err)
	}
	if err := errors.Join(unix.Madvise(arena, unix.MADV_DONTDUMP), unix.Madvise(arena, unix.MADV_WIPEONFORK)); err != nil {
		return nil, errors.Join(fmt.Errorf("protecting the memory for replies: %w", err), unix.Munmap(arena))
	}
	if err := unix.Mlock(arena); err != nil {
		log.Warn("secrets that are being read may be swapped: raise RLIMIT_MEMLOCK (LimitMEMLOCK= in systemd)",
			"bytes", len(arena), "error", err)
	}
	buffers := &lockedBuffers{arena: arena, free: make(chan []byte, count)}
	for i := range count {
		buffers.free <- arena[i*size : (i+1)*size : (i+1)*size]
	}
	return buffers, nil
}

// take waits for a buffer; giveBack returns it, cleared of what is secret.
func (b *lockedBuffers) take() []byte { return <-b.free }

func (b *lockedBuffers) giveBack(buffer []byte) { b.free <- buffer }

// close unmaps the memory; all buffers are back.
func (b *lockedBuffers) close() error {
	clear(b.arena)
	if err := unix.Munmap(b.arena); err != nil {
		return fmt.Errorf("releasing the memory for replies: %w", err)
	}
	return nil
}
