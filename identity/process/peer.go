// SPDX-License-Identifier: Apache-2.0

package process

import (
	"errors"
	"fmt"
	"net"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// PeerOf holds the process that connected to a Unix socket, whoever uses the
// connection now. Our own process is allowed: it is for the caller to say
// whether that makes sense.
//
// The ids that the kernel noted when the process connected must still be its
// effective ones: a process can connect, write a request and then execute a
// set-uid program, all before the connection is accepted.
//
// Errors: those of Open.
func PeerOf(conn *net.UnixConn) (*Process, error) {
	return orNothing(kernel{}.peer(conn))
}

// peer is PeerOf; with an error comes a closed Process that knows what was
// learned.
func (k kernel) peer(conn *net.UnixConn) (*Process, error) {
	credentials, pidfd, err := peerOptions(conn)
	if err != nil {
		return unopened(int(credentials.Pid)), err
	}
	p, err := k.adopt(int(credentials.Pid), pidfd)
	if err != nil {
		return p, err
	}
	if p.opened.ids.euid != credentials.Uid || p.opened.ids.egid != credentials.Gid {
		p.Close()
		return p, fmt.Errorf("process %d has other ids than when it connected: %w", p.pid, secret.ErrDenied)
	}
	return p, nil
}

// peerOptions returns the number and the ids that the process had when it
// connected, and a pidfd of it, which the receiver owns.
func peerOptions(conn *net.UnixConn) (credentials unix.Ucred, pidfd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return unix.Ucred{}, -1, fmt.Errorf("reaching the connection: %w: %w", secret.ErrUnavailable, err)
	}
	var failure error
	control := func(fd uintptr) {
		var told *unix.Ucred
		if told, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED); failure == nil {
			credentials = *told
			pidfd, failure = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
		}
	}
	if err := raw.Control(control); err != nil {
		return unix.Ucred{}, -1, fmt.Errorf("reaching the connection: %w: %w", secret.ErrUnavailable, err)
	}
	switch {
	case errors.Is(failure, unix.ENOPROTOOPT):
		return credentials, -1, fmt.Errorf("asking for the peer's pidfd, which needs Linux 6.5: %w: %w", secret.ErrDenied, failure)
	case failure != nil:
		return credentials, -1, failed("asking the socket for the pidfd", int(credentials.Pid), failure)
	case credentials.Pid == 0:
		_ = unix.Close(pidfd) // nothing was written to it
		return credentials, -1, fmt.Errorf("the peer is outside of our pid namespace: %w", secret.ErrDenied)
	}
	return credentials, pidfd, nil
}
