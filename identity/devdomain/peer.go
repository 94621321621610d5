// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/identity/process"
)

// holder keeps one process from being confused with another.
type holder struct {
	pid int

	mu      sync.Mutex
	process *process.Process // nil when let go of
}

func hold(p *process.Process) *holder { return &holder{pid: p.Info().PID, process: p} }

// alive reports whether the process lives; one that was let go of does not.
func (h *holder) alive() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.process != nil && h.process.Alive()
}

// release lets go of the process. A call may still be asking for it: the
// connection that it came on can end at any time.
func (h *holder) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.process != nil {
		h.process.Close()
		h.process = nil
	}
}

// peerCredentials finds out which process connected to a Unix socket. Nothing
// is encrypted: the bytes do not leave the host.
type peerCredentials struct{}

// peerInfo is what a call finds in its context.
type peerInfo struct {
	credentials.CommonAuthInfo
	holder *holder
}

func (peerInfo) AuthType() string { return "unix peer" }

// peerConn lets go of the process when the connection is closed.
type peerConn struct {
	net.Conn
	holder *holder
}

func (c peerConn) Close() error {
	c.holder.release()
	return c.Conn.Close()
}

func (peerCredentials) ServerHandshake(conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	local, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, fmt.Errorf("a %T is no Unix socket", conn)
	}
	who, err := process.PeerOf(local)
	if err != nil {
		return nil, nil, fmt.Errorf("identifying the caller: %w", err)
	}
	held := hold(who)
	info := peerInfo{CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}, holder: held}
	return peerConn{Conn: conn, holder: held}, info, nil
}

func (peerCredentials) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errors.New("these credentials are for servers")
}

func (peerCredentials) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "unix peer"}
}

func (c peerCredentials) Clone() credentials.TransportCredentials { return c }

// OverrideServerName is required by the interface; there are no names here.
func (peerCredentials) OverrideServerName(string) error { return nil }

// caller returns the process that made a call of the Workload API.
func caller(ctx context.Context) (*holder, error) {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(peerInfo); ok {
			return info.holder, nil
		}
	}
	return nil, status.Error(codes.Unauthenticated, "the calling process is unknown")
}
