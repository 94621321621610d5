// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/tap"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"
)

// surface is one socket and what is served on it.
type surface struct {
	admin        bool
	file         file
	front        *front
	grpc         *grpc.Server
	certificates Certificates
	refusals     Refusals
	limits       Limits
	requests     *places // of requests, from their headers on
	log          *slog.Logger
}

func newSurface(config Config, listener *net.UnixListener, made file, admin bool, health *health.Server) *surface {
	s := &surface{
		admin:        admin,
		file:         made,
		certificates: config.Certificates,
		refusals:     config.Refusals,
		limits:       config.Limits,
		requests:     &places{maxPending: config.Limits.Requests, maxConnections: config.Limits.Requests},
		log:          config.Logger,
		front: &front{
			listener:     listener,
			certificates: config.Certificates,
			peers:        config.Peers,
			refusals:     config.Refusals,
			log:          config.Logger,
			handshake:    config.Limits.Handshake,
			places:       &places{maxPending: config.Limits.Pending, maxConnections: config.Limits.Connections},
		},
	}
	s.front.prepare()
	pool := &wire.Pool{}
	options := append(config.Limits.options(admin),
		grpc.Creds(admitted{}),
		grpc.ForceServerCodecV2(wire.Codec{Pool: pool, WipeSent: true}),
		experimental.BufferPool(pool),
		grpc.InTapHandle(s.begin),
		grpc.UnaryInterceptor(s.unary),
		grpc.StreamInterceptor(s.stream),
		grpc.UnknownServiceHandler(s.unknown),
		grpc.WaitForHandlers(true),
		grpc.NumStreamWorkers(handlers),
	)
	s.grpc = grpc.NewServer(options...)
	healthpb.RegisterHealthServer(s.grpc, health)
	reflection.Register(s.grpc)
	return s
}

// begin comes before a request's message is read, and so before it is known who
// makes it. A user has a bounded number of requests, or their unfinished messages
// would fill the memory, and a bounded time to send them. It must not wait.
func (s *surface) begin(ctx context.Context, call *tap.Info) (context.Context, error) {
	place, _ := s.requests.take(proofOf(ctx).process.UID)
	if place == nil {
		return nil, status.Error(codes.ResourceExhausted, "too many requests at once; try again")
	}
	place.settled()
	limit := s.limits.MaxDeadline
	if _, asked := ctx.Deadline(); !asked {
		limit = s.limits.Deadline
	}
	if call.FullMethodName == pb.Admin_Purge_FullMethodName || call.FullMethodName == pb.Admin_ListPolicies_FullMethodName || isPublic(call.FullMethodName) {
		limit = s.limits.MaxStream
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	context.AfterFunc(ctx, func() { cancel(); place.leave() })
	return ctx, nil
}

// unknown answers calls of what is not served here.
func (s *surface) unknown(_ any, stream grpc.ServerStream) error {
	method, _ := grpc.MethodFromServerStream(stream)
	text := fmt.Sprintf("there is no %q here", method)
	switch {
	case !s.admin && strings.HasPrefix(method, "/"+pb.Admin_ServiceDesc.ServiceName+"/"):
		text = pb.Admin_ServiceDesc.ServiceName + " is served on the admin socket, and this is the workload socket"
	case s.admin && strings.HasPrefix(method, "/"+pb.Secrets_ServiceDesc.ServiceName+"/"):
		text = pb.Secrets_ServiceDesc.ServiceName + " is served on the workload socket, and this is the admin socket"
	}
	return fmt.Errorf("%s: %w", text, errors.ErrUnsupported)
}

func (s *surface) serve() error {
	// Each of the two says that the door was closed.
	err := s.grpc.Serve(s.front)
	if err != nil && !errors.Is(err, grpc.ErrServerStopped) && !errors.Is(err, net.ErrClosed) {
		return fmt.Errorf("serving the socket %s: %w", s.file.path, err)
	}
	return nil
}

// close finishes what is in flight, within ctx.
func (s *surface) close(ctx context.Context) error {
	err := s.front.Close()
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		s.grpc.GracefulStop()
	}()
	select {
	case <-finished:
	case <-ctx.Done():
		s.grpc.Stop()
		<-finished
	}
	if err != nil {
		err = fmt.Errorf("closing the socket %s: %w", s.file.path, err)
	}
	return errors.Join(err, s.file.remove())
}
