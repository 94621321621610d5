// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"

	"github.com/keyhole-agent/keyhole/secret"
)

// Client calls one agent. All methods may be called concurrently.
type Client struct {
	identity *spiffeIdentity // nil without a Workload API
	workload *link
	admin    *link

	secrets pb.SecretsClient
	manage  pb.AdminClient
	health  healthpb.HealthClient
}

// New returns a client with an identity, when there is a Workload API to give
// one; it waits for that until ctx ends, or 10 seconds if ctx has no deadline.
// It does not wait for the agent: calls do, or Wait.
//
// Errors: secret.ErrInvalid for the configuration, secret.ErrUnavailable when
// the Workload API does not answer or gives no SVID.
func New(ctx context.Context, config Config) (*Client, error) {
	if err := config.complete(); err != nil {
		return nil, err
	}
	c := &Client{}
	if config.WorkloadAPI != "" {
		identity, err := openIdentity(ctx, config.WorkloadAPI, config.AgentID)
		if err != nil {
			return nil, err
		}
		c.identity = identity
	}
	var err error
	if c.workload, err = newLink(config.Socket, c.identity); err == nil {
		c.admin, err = newLink(config.AdminSocket, c.identity)
	}
	if err != nil {
		return nil, errors.Join(err, c.Close())
	}
	if c.identity != nil {
		c.identity.follow(context.WithoutCancel(ctx), c.workload, c.admin)
	}
	c.secrets = pb.NewSecretsClient(c.workload.conn)
	c.health = healthpb.NewHealthClient(c.workload.conn)
	c.manage = pb.NewAdminClient(c.admin.conn)
	return c, nil
}

// Close ends calls in flight and releases everything.
func (c *Client) Close() error {
	var failures []error
	if c.identity != nil {
		failures = append(failures, c.identity.close())
	}
	for _, l := range []*link{c.workload, c.admin} {
		if l != nil {
			failures = append(failures, l.conn.Close())
		}
	}
	return errors.Join(failures...)
}

// Healthy is nil when the agent answers and serves. The error is
// secret.ErrUnavailable and says what is wrong.
func (c *Client) Healthy(ctx context.Context) error {
	answer, err := c.health.Check(ctx, &healthpb.HealthCheckRequest{})
	if err != nil {
		return c.workload.failed("asking whether the agent is well", err)
	}
	if answer.GetStatus() != healthpb.HealthCheckResponse_SERVING {
		return fmt.Errorf("%w: the agent is starting, sealed or stopping", secret.ErrUnavailable)
	}
	return nil
}

// Wait returns nil as soon as the agent serves. When ctx ends before that, the
// error is secret.ErrUnavailable, that of ctx, and what was wrong last.
func (c *Client) Wait(ctx context.Context) error {
	last := errors.New("it has not answered yet")
	for {
		err := c.watch(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() == nil {
			if !errors.Is(err, secret.ErrUnavailable) {
				return err
			}
			last = err
			again := time.NewTimer(firstPause) // gRPC paces only the attempts to connect
			select {
			case <-again.C:
				continue
			case <-ctx.Done():
				again.Stop()
			}
		}
		if trouble := c.workload.lastTrouble(); trouble != nil {
			last = trouble
		}
		return fmt.Errorf("waiting for the agent: %w: %w: %w", secret.ErrUnavailable, ctx.Err(), last)
	}
}

// watch follows the agent's health until it serves.
func (c *Client) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.health.Watch(ctx, &healthpb.HealthCheckRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return c.workload.failed("watching the agent", err)
	}
	for {
		answer, err := stream.Recv()
		if err != nil {
			return c.workload.failed("watching the agent", err)
		}
		if answer.GetStatus() == healthpb.HealthCheckResponse_SERVING {
			return nil
		}
	}
}
