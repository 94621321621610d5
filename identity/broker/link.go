// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"errors"
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"

	"github.com/keyhole-agent/keyhole/identity/workload"
)

// The broker is on the same host: a second without it is long enough to look
// again, and a question in between fails at once rather than wait.
const (
	firstPause = 50 * time.Millisecond
	lastPause  = time.Second
)

// pingEvery is how long a connection with a question under way may be silent.
// A gRPC server drops clients that ping more often than every 5 minutes.
const pingEvery = 6 * time.Minute

// link is one connection, made with one SVID of ours. When that is renewed, the
// next question makes another link, and the old one is closed with its last
// question.
type link struct {
	conn    *grpc.ClientConn
	svid    *x509svid.SVID
	asking  int  // questions under way; guarded by Client.mu
	retired bool // guarded by Client.mu
}

// acquire returns the link for our current SVID. The caller releases it.
func (c *Client) acquire() (*link, error) {
	svid, err := c.source.GetX509SVID()
	if err != nil {
		return nil, fmt.Errorf("proving ourselves: %w", err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, errors.New("the agent is stopping")
	}
	if c.link == nil || c.link.svid != svid {
		conn, err := c.dial(svid)
		if err != nil {
			return nil, err
		}
		if old := c.link; old != nil {
			old.retired = true
			if old.asking == 0 {
				err = old.conn.Close()
			}
		}
		c.link = &link{conn: conn, svid: svid}
		if err != nil {
			return nil, fmt.Errorf("closing the connection of the SVID before: %w", err)
		}
	}
	c.link.asking++
	c.asking.Add(1)
	return c.link, nil
}

func (c *Client) release(l *link) {
	defer c.asking.Done()
	c.mu.Lock()
	defer c.mu.Unlock()
	l.asking--
	if l.retired && l.asking == 0 {
		// Its error can only be that it was closed before.
		_ = l.conn.Close()
	}
}

// dial makes a connection for svid, lazily: nothing is sent before a question.
func (c *Client) dial(svid *x509svid.SVID) (*grpc.ClientConn, error) {
	conn, err := grpc.NewClient(c.target,
		grpc.WithTransportCredentials(credentials.NewTLS(
			workload.ClientTLS(svid, c.source, tlsconfig.AuthorizeIDPrefix(c.server)))),
		grpc.WithConnectParams(grpc.ConnectParams{
			Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: lastPause},
			MinConnectTimeout: c.timeout,
		}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: pingEvery}),
	)
	if err != nil {
		return nil, fmt.Errorf("connecting to the broker at %s: %w", c.target, err)
	}
	return conn, nil
}
