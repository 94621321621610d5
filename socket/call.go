// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"fmt"
	"runtime/debug"
	"strings"

	"google.golang.org/grpc"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"

	"github.com/spiffe/go-spiffe/v2/spiffeid"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

type callerKey struct{}

// callerOf returns who makes the request. Without one there is no answer: a
// handler that is reached around the interceptors fails.
func callerOf(ctx context.Context) (identity.Caller, error) {
	caller, ok := ctx.Value(callerKey{}).(*identity.Caller)
	if !ok || len(caller.IDs) == 0 {
		return identity.Caller{}, fmt.Errorf("%w: the request has no caller", secret.ErrUnauthenticated)
	}
	return *caller, nil
}

// newRequestID returns 128 random bits in hexadecimal.
func newRequestID() string { return randomHex(16) }

// unary is what every call with one answer passes through.
func (s *surface) unary(ctx context.Context, request any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (answer any, err error) {
	id := newRequestID()
	defer func() {
		if w, ok := request.(wire.Wiper); ok {
			w.Wipe()
		}
		if broken := recover(); broken != nil {
			answer, err = nil, s.broken(info.FullMethod, id, broken)
		}
	}()
	if err := grpc.SetHeader(ctx, metadata.Pairs(wire.RequestIDHeader, id)); err != nil {
		return nil, s.fail(ctx, info.FullMethod, id, err)
	}
	limit := s.limits.MaxDeadline
	if _, asked := ctx.Deadline(); !asked {
		limit = s.limits.Deadline
	}
	ctx, cancel := context.WithTimeout(ctx, limit) // the earlier one counts
	defer cancel()
	ctx, err = s.enter(ctx, info.FullMethod, id)
	if err != nil {
		return nil, s.fail(ctx, info.FullMethod, id, err)
	}
	answer, err = handler(ctx, request)
	if err != nil && !isPublic(info.FullMethod) { // gRPC's own services speak gRPC's own errors
		err = s.fail(ctx, info.FullMethod, id, err)
	}
	return answer, err
}

// stream is what every call with a stream passes through, and every call of a
// method that there is not.
func (s *surface) stream(server any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handler grpc.StreamHandler) (err error) {
	id := newRequestID()
	defer func() {
		if broken := recover(); broken != nil {
			err = s.broken(info.FullMethod, id, broken)
		}
	}()
	ctx, cancel := context.WithTimeout(stream.Context(), s.limits.MaxStream)
	defer cancel()
	if err := stream.SetHeader(metadata.Pairs(wire.RequestIDHeader, id)); err != nil {
		return s.fail(ctx, info.FullMethod, id, err)
	}
	// A stream must not outlive the SVID that it was opened with.
	if chain := proofOf(ctx).chain; len(chain) > 0 {
		var done context.CancelFunc
		ctx, done = context.WithDeadline(ctx, chain[0].NotAfter)
		defer done()
	}
	if isPublic(info.FullMethod) { // nobody should have to wait for those who only watch
		defer context.AfterFunc(s.front.ctx, cancel)()
	}
	ctx, err = s.enter(ctx, info.FullMethod, id)
	if err != nil {
		return s.fail(ctx, info.FullMethod, id, err)
	}
	err = handler(server, withContext{stream, ctx})
	switch {
	case err == nil:
		return nil
	case !isPublic(info.FullMethod):
		return s.fail(ctx, info.FullMethod, id, err)
	case s.front.ctx.Err() != nil:
		return s.fail(ctx, info.FullMethod, id, fmt.Errorf("%w: the agent is stopping", secret.ErrUnavailable))
	}
	return err // gRPC's own services speak gRPC's own errors
}

// withContext is a stream with another context.
type withContext struct {
	grpc.ServerStream
	ctx context.Context
}

func (w withContext) Context() context.Context { return w.ctx }

func (s *surface) broken(method, id string, reason any) error {
	s.log.Error("a request made the agent panic", "request", id, "method", method, "panic", fmt.Sprint(reason), "stack", string(debug.Stack()))
	return newStatus(internalFailure, internalText(id), id)
}

// proofOf returns what the connection offered; nothing when it is not ours.
func proofOf(ctx context.Context) *proof {
	if from, ok := peer.FromContext(ctx); ok {
		if p, ok := from.AuthInfo.(*proof); ok {
			return p
		}
	}
	return &proof{}
}

// enter finds out who makes the request and notes it in the context, or has the
// refusal audited.
func (s *surface) enter(ctx context.Context, method, id string) (context.Context, error) {
	p := proofOf(ctx)
	if len(p.chain) == 0 && isPublic(method) {
		return ctx, nil
	}
	caller, err := s.identify(ctx, p)
	caller.Request = id
	if err == nil && len(caller.IDs) == 0 {
		err = fmt.Errorf("%w: not entitled to any SPIFFE ID", secret.ErrDenied)
	}
	if err != nil {
		caller.IDs = nil
		if auditErr := s.refusals.Refuse(ctx, caller, operationOf(method), err); auditErr != nil {
			s.log.Error("the audit log does not take the record of a refused request", "request", id, "method", method, "reason", err, "error", auditErr)
		}
		return ctx, unidentified(err)
	}
	return context.WithValue(ctx, callerKey{}, &caller), nil
}

// identify returns what is known of the caller, also with an error.
func (s *surface) identify(ctx context.Context, p *proof) (identity.Caller, error) {
	switch {
	case len(p.chain) > 0:
		caller := identity.Caller{Source: identity.X509, Process: p.process}
		id, err := s.certificates.Verify(p.chain)
		if err == nil {
			caller.IDs = []spiffeid.ID{id}
		}
		return caller, err
	case p.peer != nil:
		caller, err := p.peer.Caller(ctx)
		caller.Source = identity.Peer
		if caller.Process == (identity.Process{}) {
			caller.Process = p.process
		}
		return caller, err
	case p.peerErr != nil:
		return identity.Caller{Source: identity.Peer, Process: p.process}, p.peerErr
	}
	return identity.Caller{Process: p.process}, fmt.Errorf("%w: no credential was offered", secret.ErrUnauthenticated)
}

// isPublic tells the methods that need no credential: whether the agent lives,
// and what it speaks.
func isPublic(method string) bool {
	return strings.HasPrefix(method, "/"+healthpb.Health_ServiceDesc.ServiceName+"/") ||
		strings.HasPrefix(method, "/grpc.reflection.")
}

// operationOf returns the name that the audit log has for a method.
func operationOf(method string) string {
	switch method {
	case pb.Secrets_Get_FullMethodName:
		return "get"
	case pb.Secrets_List_FullMethodName:
		return "list"
	case pb.Secrets_Put_FullMethodName:
		return "put"
	case pb.Secrets_Delete_FullMethodName:
		return "delete"
	case pb.Secrets_Describe_FullMethodName:
		return "describe"
	case pb.Secrets_Explain_FullMethodName:
		return "explain"
	case pb.Admin_Purge_FullMethodName:
		return "purge"
	case pb.Admin_ApplyPolicies_FullMethodName:
		return "policy-apply"
	case pb.Admin_ListPolicies_FullMethodName:
		return "policy-list"
	case pb.Admin_DeletePolicy_FullMethodName:
		return "policy-delete"
	case pb.Admin_Explain_FullMethodName:
		return "policy-explain"
	case pb.Admin_Status_FullMethodName:
		return "status"
	case pb.Admin_VerifyAudit_FullMethodName:
		return "audit-verify"
	}
	// Anybody can call anything, so this does not go to the audit log as it is.
	if isPublic(method) {
		return "health"
	}
	return "unknown"
}
