// SPDX-License-Identifier: Apache-2.0

package broker

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/bundle/x509bundle"
	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// DefaultTimeout bounds one question. The caller of a filesystem request cannot
// be killed while it is asked about, so it is short.
const DefaultTimeout = 1500 * time.Millisecond

// Source is our own identity, and whom it believes. workload.Source is one. A
// pointer other than the last one means that the SVID was renewed.
type Source interface {
	x509svid.Source
	x509bundle.Source
}

// Config says where the broker is and who it must be.
type Config struct {
	// Address of the Broker API: "unix:///run/spire/broker.sock".
	Address string

	// Source proves us to the broker, and verifies it.
	Source Source

	// TrustDomain is the one that all answers must be of.
	TrustDomain spiffeid.TrustDomain

	// Server is the broker's SPIFFE ID, or what its ID begins with by whole
	// segments. Zero: spiffe://TrustDomain/spire/agent, which every agent of
	// SPIRE is below.
	Server spiffeid.ID

	// Timeout bounds each Attest. Zero: DefaultTimeout.
	Timeout time.Duration

	// Now is the clock that expiry is checked with. nil: the system's.
	Now func() time.Time
}

// Client asks one broker. It may be used by any number of goroutines.
type Client struct {
	target  string
	source  Source
	domain  spiffeid.TrustDomain
	server  spiffeid.ID
	timeout time.Duration
	now     func() time.Time

	mu     sync.Mutex
	link   *link // to ask the next question on; nil before the first
	closed bool
	asking sync.WaitGroup
}

var _ identity.Attestor = (*Client)(nil)

// New returns a client without connecting. The error is secret.ErrInvalid.
func New(config Config) (*Client, error) {
	path, found := strings.CutPrefix(config.Address, "unix://")
	switch {
	case !found || !strings.HasPrefix(path, "/"):
		return nil, fmt.Errorf("%w address of the Broker API %q: it must be unix:// and an absolute path", secret.ErrInvalid, config.Address)
	case config.Source == nil:
		return nil, fmt.Errorf("%w broker configuration: no source of our own SVID", secret.ErrInvalid)
	case config.TrustDomain.IsZero():
		return nil, fmt.Errorf("%w broker configuration: no trust domain", secret.ErrInvalid)
	case config.Timeout < 0:
		return nil, fmt.Errorf("%w broker configuration: the timeout %s is negative", secret.ErrInvalid, config.Timeout)
	}
	c := &Client{
		target: config.Address, source: config.Source, domain: config.TrustDomain,
		server: config.Server, timeout: config.Timeout, now: config.Now,
	}
	if c.server.IsZero() {
		server, err := spiffeid.FromSegments(config.TrustDomain, "spire", "agent")
		if err != nil {
			return nil, fmt.Errorf("%w broker configuration: %w", secret.ErrInvalid, err)
		}
		c.server = server
	}
	if c.server.Path() == "" {
		return nil, fmt.Errorf("%w broker configuration: the server's SPIFFE ID %s has no path, any workload would match", secret.ErrInvalid, c.server)
	}
	if c.timeout == 0 {
		c.timeout = DefaultTimeout
	}
	if c.now == nil {
		c.now = time.Now // the system's clock is the default
	}
	return c, nil
}

// Close ends the questions under way and waits for them.
func (c *Client) Close() error {
	c.mu.Lock()
	c.closed = true
	last := c.link
	c.link = nil
	c.mu.Unlock()
	var err error
	if last != nil {
		err = last.conn.Close()
	}
	c.asking.Wait()
	if err != nil {
		return fmt.Errorf("closing the connection to the broker: %w", err)
	}
	return nil
}

// Attest asks which SPIFFE IDs the process pid is entitled to. pid is a thread
// group's, in our pid namespace. It answers within the configured timeout.
//
// A Grant without IDs comes with no error: the process is entitled to none, or
// does not exist. The error is secret.ErrUnavailable when the broker could not
// be asked or its answer is not to be believed.
func (c *Client) Attest(ctx context.Context, pid int) (identity.Grant, error) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	grant, err := c.ask(ctx, pid, false)
	if err != nil {
		return identity.Grant{}, fmt.Errorf("%w: asking the broker about process %d: %w", secret.ErrUnavailable, pid, err)
	}
	return grant, nil
}

// CheckSelf asks the broker about our own process and requires our own SPIFFE
// ID in the answer. It waits for the broker until ctx ends.
//
// Errors: secret.ErrUnavailable when the broker could not be asked, and
// secret.ErrDenied when it sees another process under our number, or none: then
// its other answers would be about the wrong processes too.
func (c *Client) CheckSelf(ctx context.Context) error {
	pid := os.Getpid()
	own, err := c.source.GetX509SVID()
	if err != nil {
		return fmt.Errorf("%w: asking the broker about ourselves: %w", secret.ErrUnavailable, err)
	}
	grant, err := c.ask(ctx, pid, true)
	if err != nil {
		return fmt.Errorf("%w: asking the broker about ourselves: %w", secret.ErrUnavailable, err)
	}
	if slices.Contains(grant.IDs, own.ID) {
		return nil
	}
	return fmt.Errorf("%w: the broker says that our own process %d is %s, not %s: "+
		"run the agent in the pid namespace of the broker (hostPID), and let it use the Broker API with process references",
		secret.ErrDenied, pid, named(grant.IDs), own.ID)
}

func named(ids []spiffeid.ID) string {
	if len(ids) == 0 {
		return "entitled to no SPIFFE ID"
	}
	names := make([]string, len(ids))
	for i, id := range ids {
		names[i] = id.String()
	}
	return strings.Join(names, " and ")
}

// ask puts one question. wait says whether to wait while there is no connection.
func (c *Client) ask(ctx context.Context, pid int, wait bool) (identity.Grant, error) {
	if pid < 1 || pid > math.MaxInt32 {
		return identity.Grant{}, fmt.Errorf("%d is not a process id", pid)
	}
	reference, err := anypb.New(&broker.WorkloadPIDReference{Pid: int32(pid)})
	if err != nil {
		return identity.Grant{}, fmt.Errorf("encoding the reference: %w", err)
	}
	l, err := c.acquire()
	if err != nil {
		return identity.Grant{}, err
	}
	defer c.release(l)

	// The stream would go on until its context ends; one message is the answer.
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true"))
	defer cancel()
	request := &broker.SubscribeToX509SVIDRequest{Reference: &broker.WorkloadReference{Reference: reference}}
	stream, err := broker.NewAPIClient(l.conn).SubscribeToX509SVID(ctx, request, grpc.WaitForReady(wait))
	if err != nil {
		return c.refused(err)
	}
	answer, err := stream.Recv()
	if err != nil {
		return c.refused(err)
	}
	return c.parse(answer)
}

// refused makes an answer of an error. The standard (SPIFFE Broker API, section
// 4.8) has PermissionDenied for a workload without entitlement and NotFound for
// one that does not exist; SPIRE sends an empty list instead. PermissionDenied
// may also mean that we may not ask. Nobody is served then, either, and
// CheckSelf tells the two apart.
func (c *Client) refused(err error) (identity.Grant, error) {
	switch status.Code(err) {
	case codes.PermissionDenied, codes.NotFound:
		return identity.Grant{}, nil
	default:
		return identity.Grant{}, describe(err)
	}
}

// describe drops the gRPC frame around a message that people will read.
func describe(err error) error {
	if answer, ok := status.FromError(err); ok {
		return errors.New(answer.Code().String() + ": " + answer.Message())
	}
	return err
}
