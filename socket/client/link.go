// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/resolver"
	"google.golang.org/grpc/resolver/manual"

	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/secret"
)

// The pauses between attempts to connect: the agent is on this machine.
const (
	firstPause     = 50 * time.Millisecond
	lastPause      = time.Second
	connectTimeout = 5 * time.Second
)

// maxAnswer bounds one message from the agent, in bytes. Its own messages are
// below 4 MiB.
const maxAnswer = 8 << 20

// Flow control windows in bytes (RFC 9113, section 5.2). Fixed ones spare the
// pings by which gRPC would measure the link; a Unix socket needs no large ones.
const (
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
)

// link is the connection to one socket, which gRPC makes when it is needed and
// again when it breaks.
type link struct {
	path     string
	conn     *grpc.ClientConn
	resolver *manual.Resolver

	mu      sync.Mutex
	trouble error  // why the last attempt to connect failed; nil when it did not
	version uint64 // of the identity that connections are made with
}

// newLink does not connect yet. Without an identity, it checks who serves the
// socket instead.
func newLink(path string, identity *spiffeIdentity) (*link, error) {
	l := &link{path: path, resolver: manual.NewBuilderWithScheme("keyhole")}
	l.resolver.InitialState(l.state())
	var transport credentials.TransportCredentials
	if identity == nil {
		transport = insecure.NewCredentials()
	} else {
		transport = credentials.NewTLS(identity.tls())
	}
	pool := &wire.Pool{}
	conn, err := grpc.NewClient("keyhole:///agent",
		grpc.WithResolvers(l.resolver),
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return l.dial(ctx, identity == nil) }),
		grpc.WithTransportCredentials(noted{transport, l}),
		grpc.WithAuthority("keyhole"),
		grpc.WithDefaultCallOptions(
			grpc.ForceCodecV2(wire.Codec{Pool: pool}),
			grpc.MaxCallRecvMsgSize(maxAnswer)),
		experimental.WithBufferPool(pool),
		grpc.WithStaticStreamWindowSize(streamWindow),
		grpc.WithStaticConnWindowSize(connectionWindow),
		grpc.WithDisableServiceConfig(),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: lastPause},
			MinConnectTimeout: connectTimeout,
		}))
	if err != nil {
		return nil, fmt.Errorf("preparing the connection to %s: %w", path, err)
	}
	l.conn = conn
	return l, nil
}

// state names the only address there is. What it says changes with the
// identity: to gRPC that is another server, so it finishes the calls on the old
// connection and makes a new one.
func (l *link) state() resolver.State {
	return resolver.State{Addresses: []resolver.Address{{Addr: "agent-" + strconv.FormatUint(l.version, 10)}}}
}

// renew has further calls made on a new connection.
func (l *link) renew() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.version++
	l.resolver.UpdateState(l.state())
}

func (l *link) dial(ctx context.Context, checkServer bool) (net.Conn, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", l.path)
	for errors.Is(err, unix.EAGAIN) { // the backlog is full, perhaps of somebody else's connections
		again := time.NewTimer(2 * time.Millisecond)
		select {
		case <-again.C:
			conn, err = dialer.DialContext(ctx, "unix", l.path)
			continue
		case <-ctx.Done():
			again.Stop()
		}
		break
	}
	if err == nil && checkServer {
		if err = checkOwner(conn.(*net.UnixConn)); err != nil {
			_ = conn.Close() // nothing was sent
		}
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ECONNREFUSED):
		err = fmt.Errorf("%w: no agent serves %s; is it running?", secret.ErrUnavailable, l.path)
	case errors.Is(err, secret.ErrUnauthenticated):
		err = fmt.Errorf("connecting to %s: %w", l.path, err)
	case errors.Is(err, fs.ErrPermission):
		err = fmt.Errorf("%w: this user may not connect to %s", secret.ErrDenied, l.path)
	case err != nil:
		err = fmt.Errorf("connecting to %s: %w: %w", l.path, secret.ErrUnavailable, err)
	}
	if err != nil {
		l.note(err)
		return nil, err
	}
	return conn, nil
}

// checkOwner makes sure that root or our own user listens: without mTLS, that
// is all there is to tell the agent from somebody who took its place.
func checkOwner(conn *net.UnixConn) error {
	raw, err := conn.SyscallConn()
	if err != nil {
		return err
	}
	var credentials *unix.Ucred
	var failure error
	err = raw.Control(func(fd uintptr) {
		credentials, failure = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, failure); err != nil {
		return fmt.Errorf("asking who serves it: %w", err)
	}
	if credentials.Uid != 0 && int(credentials.Uid) != os.Geteuid() {
		return fmt.Errorf("%w: uid %d serves it, who is neither root nor this user", secret.ErrUnauthenticated, credentials.Uid)
	}
	return nil
}

// note remembers why a connection could not be made: gRPC passes only a text on.
func (l *link) note(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.trouble = err
}

func (l *link) lastTrouble() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.trouble
}

// noted notes how handshakes go.
type noted struct {
	credentials.TransportCredentials
	link *link
}

func (n noted) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	conn, info, err := n.TransportCredentials.ClientHandshake(ctx, authority, raw)
	if err != nil {
		n.link.note(fmt.Errorf("proving identities over %s: %w", n.link.path, handshakeError(err)))
	} else {
		n.link.note(nil)
	}
	return conn, info, err
}

func (n noted) Clone() credentials.TransportCredentials {
	return noted{n.TransportCredentials.Clone(), n.link}
}

// handshakeError tells a server that is not the agent from one that went away.
func handshakeError(err error) error {
	var network net.Error
	if errors.As(err, &network) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("%w: %w", secret.ErrUnavailable, err)
	}
	return fmt.Errorf("%w: whoever serves it is not the agent that is expected: %w", secret.ErrUnauthenticated, err)
}
