// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// front is the front door of one socket: it accepts connections, finds out what
// they speak and what they offer, and hands them on. It is the net.Listener that
// gRPC serves from.
type front struct {
	listener     *net.UnixListener
	certificates Certificates
	peers        Peers
	refusals     Refusals
	log          *slog.Logger
	handshake    time.Duration
	places       *places

	ready  chan net.Conn
	ctx    context.Context // ends when the door closes
	cancel context.CancelFunc
	work   sync.WaitGroup
}

var _ net.Listener = (*front)(nil)

// prepare makes f ready to be closed, and to be opened before that.
func (f *front) prepare() {
	f.ready = make(chan net.Conn)
	f.ctx, f.cancel = context.WithCancel(context.Background())
}

// open starts to accept.
func (f *front) open() { f.work.Go(f.acceptAll) }

// Accept returns the next connection that is past the door, a *conn.
func (f *front) Accept() (net.Conn, error) {
	select {
	case c := <-f.ready:
		return c, nil
	case <-f.ctx.Done():
		return nil, net.ErrClosed
	}
}

// Addr is that of the socket.
func (f *front) Addr() net.Addr { return f.listener.Addr() }

// Close closes the door: connections that are not past it are closed, the
// others are their owner's. It waits until that is done.
func (f *front) Close() error {
	f.cancel()
	err := f.listener.Close()
	f.work.Wait()
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// The pauses after the system could not accept, for want of descriptors say.
const (
	firstPause = 5 * time.Millisecond
	lastPause  = time.Second
)

func (f *front) acceptAll() {
	pause := firstPause
	for {
		raw, err := f.listener.AcceptUnix()
		if err == nil {
			pause = firstPause
			f.admit(raw)
			continue
		}
		if f.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
			return
		}
		f.log.Warn("cannot accept a connection; trying again", "socket", f.Addr().String(), "error", err)
		again := time.NewTimer(pause)
		select {
		case <-again.C:
		case <-f.ctx.Done():
			again.Stop()
			return
		}
		pause = min(2*pause, lastPause)
	}
}

// admit gives the connection a place and sees to the rest in a goroutine.
func (f *front) admit(raw *net.UnixConn) {
	credentials, err := peerCredentials(raw)
	if err != nil {
		f.log.Debug("closed a connection", "socket", f.Addr().String(), "error", err)
		_ = raw.Close() // nothing was sent
		return
	}
	place, first := f.places.take(credentials.Uid)
	if place == nil {
		if first {
			f.log.Warn("too many connections; closing further ones", "socket", f.Addr().String(), "uid", credentials.Uid, "pid", credentials.Pid)
		}
		_ = raw.Close() // nothing was sent
		return
	}
	process := identity.Process{PID: int(credentials.Pid), UID: credentials.Uid, GID: credentials.Gid}
	f.work.Go(func() {
		defer place.settled()
		ctx, cancel := context.WithTimeout(f.ctx, f.handshake)
		defer cancel()
		// The socket's own deadline would need a clock of ours.
		unblock := context.AfterFunc(ctx, func() { _ = raw.SetDeadline(time.Unix(1, 0)) })
		c, err := f.greet(ctx, raw, process)
		if err == nil && !unblock() {
			err = context.Cause(ctx)
		}
		if err != nil {
			f.log.Debug("closed a connection", "socket", f.Addr().String(), "pid", process.PID, "uid", process.UID, "error", err)
			unblock()
			if c != nil {
				c.release()
			}
			_ = raw.Close() // that of TLS would wait for the peer
			place.leave()
			return
		}
		closePeer := c.release
		c.release = func() { closePeer(); place.leave() }
		select {
		case f.ready <- c:
		case <-f.ctx.Done():
			_ = raw.Close() // likewise
			c.once.Do(c.release)
		}
	})
}

// greet finds out what a connection speaks and offers. The process is looked at
// first, while it is most likely still the one that connected.
func (f *front) greet(ctx context.Context, raw *net.UnixConn, process identity.Process) (*conn, error) {
	p := &proof{process: process, CommonAuthInfo: credentials.CommonAuthInfo{SecurityLevel: credentials.PrivacyAndIntegrity}}
	if f.peers != nil {
		p.peer, p.peerErr = f.peers.Accept(raw)
	}
	c := &conn{proof: p, release: func() { f.forget(p) }}
	spoken, head, err := readFirst(raw)
	if err != nil {
		return c, fmt.Errorf("reading the first bytes: %w", err)
	}
	start := &replayed{UnixConn: raw, head: head}
	switch spoken {
	case spokenTLS:
		f.forget(p)
		c.Conn, err = f.secure(ctx, start, p)
		return c, err
	case spokenHTTP2:
		c.Conn = start
		return c, nil
	}
	if _, err := io.WriteString(raw, refusal); err != nil {
		return c, fmt.Errorf("saying what is spoken here: %w", err)
	}
	return c, errors.New("it speaks neither TLS nor HTTP/2")
}

// forget lets go of the process at the other end.
func (f *front) forget(p *proof) {
	if p.peer == nil {
		p.peerErr = nil
		return
	}
	if err := p.peer.Close(); err != nil {
		f.log.Warn("letting go of the process at the other end of a connection", "pid", p.process.PID, "error", err)
	}
	p.peer, p.peerErr = nil, nil
}

// secure does the TLS handshake. It proves that the client has the key of the
// certificate it sends; the certificate itself is verified for every request.
func (f *front) secure(ctx context.Context, start *replayed, p *proof) (net.Conn, error) {
	if f.certificates == nil {
		return nil, f.refuse(ctx, p, fmt.Errorf("%w: this agent accepts no X.509-SVIDs", secret.ErrUnauthenticated))
	}
	config := f.certificates.ServerTLS()
	config.NextProtos = []string{"h2"}
	config.MinVersion = max(config.MinVersion, tls.VersionTLS13)
	config.SessionTicketsDisabled = true
	config.ClientAuth = tls.RequireAnyClientCert
	config.VerifyPeerCertificate = nil
	config.VerifyConnection = nil
	secured := tls.Server(start, config)
	if err := secured.HandshakeContext(ctx); err != nil {
		if !isAccident(err) {
			err = f.refuse(ctx, p, fmt.Errorf("%w: TLS handshake: %w", secret.ErrUnauthenticated, err))
		}
		return nil, err
	}
	state := secured.ConnectionState()
	if state.NegotiatedProtocol != "h2" {
		return nil, errors.New("it did not ask for h2 by ALPN, which gRPC needs")
	}
	p.chain = state.PeerCertificates
	return secured, nil
}

// isAccident tells handshakes that broke, from those where the client offered
// something that we refuse: the client went away or refused us, or we have no
// SVID yet.
func isAccident(err error) bool {
	var network net.Error
	return errors.As(err, &network) || errors.Is(err, io.EOF) || errors.Is(err, secret.ErrUnavailable) ||
		errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded)
}

// refuse has a refusal audited, and returns its reason.
func (f *front) refuse(ctx context.Context, p *proof, reason error) error {
	unknown := identity.Caller{Source: identity.X509, Process: p.process, Request: newRequestID()}
	if err := f.refusals.Refuse(ctx, unknown, "connect", reason); err != nil {
		f.log.Error("the audit log does not take the record of a refused connection", "request", unknown.Request, "reason", reason, "error", err)
	}
	return reason
}

// spoken is what a connection speaks.
type spoken uint8

const (
	spokenUnknown spoken = iota // not decided yet
	spokenTLS                   // a TLS record with a handshake (RFC 8446, section 5.1)
	spokenHTTP2                 // the client's preface (RFC 9113, section 3.4)
	spokenOther                 // nothing that we do
)

const (
	tlsHandshake = 0x16
	http2Preface = "PRI "
)

// classify tells what a connection that begins with head speaks, as soon as
// that is decided: after one to four bytes.
func classify(head []byte) spoken {
	if len(head) == 0 {
		return spokenUnknown
	}
	if head[0] == tlsHandshake {
		return spokenTLS
	}
	n := min(len(head), len(http2Preface))
	switch {
	case string(head[:n]) != http2Preface[:n]:
		return spokenOther
	case n < len(http2Preface):
		return spokenUnknown
	}
	return spokenHTTP2
}

// readFirst reads as little as decides.
func readFirst(from io.Reader) (spoken, []byte, error) {
	head := make([]byte, 0, len(http2Preface))
	for {
		n, err := from.Read(head[len(head):cap(head)])
		head = head[:len(head)+n]
		if s := classify(head); s != spokenUnknown {
			return s, head, nil
		}
		if err != nil {
			return spokenUnknown, nil, err
		}
	}
}

// refusal is what somebody reads who speaks something else: an answer to HTTP/1,
// and plain enough for whoever typed.
const refusal = "HTTP/1.1 400 Bad Request\r\n" +
	"Content-Type: text/plain; charset=utf-8\r\n" +
	"Connection: close\r\n" +
	"\r\n" +
	"This is Keyhole. It speaks gRPC here: HTTP/2, with TLS or without.\n"
