// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"crypto/x509"
	"errors"
	"net"
	"sync"

	"google.golang.org/grpc/credentials"

	"github.com/keyhole-agent/keyhole/identity"
)

// proof is what a connection offered to prove who is calling. Exactly one of
// chain, peer and peerErr is set, or none when processes are not identified.
type proof struct {
	credentials.CommonAuthInfo
	process identity.Process    // that connected, as the kernel noted then; for the audit log
	chain   []*x509.Certificate // what the peer sent under TLS, leaf first; its key was proven, nothing else
	peer    identity.Connection // the process, when no credential was offered
	peerErr error               // why that is not known
}

// AuthType names the protocol, as gRPC wants it.
func (*proof) AuthType() string { return "keyhole" }

// conn is a connection that is past the front door.
type conn struct {
	net.Conn // TLS, or the socket itself
	proof    *proof
	release  func()
	once     sync.Once
}

// Close closes the connection and gives its place to another.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.release)
	return err
}

// replayed is a connection whose first bytes have been looked at.
type replayed struct {
	*net.UnixConn
	head []byte
}

func (r *replayed) Read(p []byte) (int, error) {
	if len(r.head) > 0 {
		n := copy(p, r.head)
		r.head = r.head[n:]
		return n, nil
	}
	return r.UnixConn.Read(p)
}

// admitted hands the proof of a conn to gRPC. The handshake was done before.
type admitted struct{}

var _ credentials.TransportCredentials = admitted{}

var errNotAdmitted = errors.New("the connection did not come through the front door")

func (admitted) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	c, ok := raw.(*conn)
	if !ok {
		return nil, nil, errNotAdmitted
	}
	return c, c.proof, nil
}

func (admitted) ClientHandshake(context.Context, string, net.Conn) (net.Conn, credentials.AuthInfo, error) {
	return nil, nil, errNotAdmitted
}

func (admitted) Info() credentials.ProtocolInfo {
	return credentials.ProtocolInfo{SecurityProtocol: "keyhole"}
}

func (a admitted) Clone() credentials.TransportCredentials { return a }

func (admitted) OverrideServerName(string) error { return nil }
