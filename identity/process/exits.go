// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// exits tells of processes that ended, for any number of them, with one
// goroutine and no thread of its own: the epoll descriptor is itself watched by
// the Go runtime. A pidfd leaves when it is closed.
type exits struct {
	epoll *os.File
}

func newExits() (*exits, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("creating an epoll descriptor: %w: %w", secret.ErrUnavailable, err)
	}
	if err := unix.SetNonblock(fd, true); err != nil { // or the runtime does not watch it
		_ = unix.Close(fd) // nothing was done with it
		return nil, fmt.Errorf("making the epoll descriptor non-blocking: %w: %w", secret.ErrUnavailable, err)
	}
	return &exits{epoll: os.NewFile(uintptr(fd), "epoll")}, nil
}

// add watches a pidfd. The number is what wait will tell.
func (x *exits) add(pid, pidfd int) error {
	raw, err := x.epoll.SyscallConn()
	if err != nil {
		return err
	}
	// Once is enough, and a descriptor that somebody still looks at after the
	// exit does not wake us again and again.
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLONESHOT, Fd: int32(pid)}
	var failure error
	if err := raw.Control(func(fd uintptr) {
		failure = unix.EpollCtl(int(fd), unix.EPOLL_CTL_ADD, pidfd, &event)
	}); err != nil {
		return err
	}
	return failure
}

// wait calls exited with the number of each process that ends, until close.
func (x *exits) wait(exited func(pid int)) {
	raw, err := x.epoll.SyscallConn()
	if err != nil {
		return // closed already
	}
	events := make([]unix.EpollEvent, 128)
	for {
		n := 0
		err := raw.Read(func(fd uintptr) bool {
			n, err = unix.EpollWait(int(fd), events, 0)
			return n > 0 || err != nil && !errors.Is(err, unix.EINTR)
		})
		if err != nil {
			return // closed
		}
		for _, event := range events[:max(n, 0)] {
			exited(int(event.Fd))
		}
	}
}

func (x *exits) close() error { return x.epoll.Close() }
