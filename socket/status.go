// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"errors"
	"log/slog"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"

	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/secret"
)

// told is an error with another reason or text than the table has for it.
type told struct {
	error
	reason wire.Reason // "": that of the table
	text   string      // "": that of the table
}

func (t *told) Unwrap() error { return t.error }

// unidentified is an error that ended a request before its caller was known.
// It tells nothing but that.
func unidentified(err error) error {
	if errors.Is(err, secret.ErrDenied) {
		return &told{error: err, text: "permission denied: the process that calls has no SPIFFE ID that this agent accepts; " +
			"the audit log says why"}
	}
	return err
}

var internalFailure = wire.FailureOf(nil)

func internalText(id string) string {
	return "internal error; the agent's log says more under " + id
}

// fail translates an error to what the caller gets. What it does not get is
// logged.
func (s *surface) fail(ctx context.Context, method, id string, err error) error {
	failure := wire.FailureOf(err)
	if failure.Reason == wire.Internal && ctx.Err() != nil {
		failure = wire.FailureOf(ctx.Err()) // gRPC says it in words of its own
	}
	var special *told
	if errors.As(err, &special) && special.reason != "" {
		failure = wire.FailureFor(special.reason, failure.Code)
	}
	text := err.Error()
	switch {
	case failure.Reason == wire.Internal:
		s.log.Error("a request failed", "request", id, "method", method, "error", err)
		text = internalText(id)
	case special != nil && special.text != "":
		s.log.Debug("a request was refused", "request", id, "method", method, "error", err)
		text = special.text
	case !failure.Public && !s.admin:
		s.log.Log(ctx, levelOf(failure), "a request was refused", "request", id, "method", method, "error", err)
		text = publicText(failure)
	}
	return newStatus(failure, text, id)
}

// levelOf says how much an operator wants to know.
func levelOf(failure wire.Failure) slog.Level {
	switch failure.Reason {
	case wire.Tampered:
		return slog.LevelError
	case wire.PermissionDenied, wire.Canceled, wire.DeadlineExceeded:
		return slog.LevelDebug
	}
	return slog.LevelWarn
}

// publicText is what anybody may know of an error that tells about the agent.
func publicText(failure wire.Failure) string {
	switch failure.Reason {
	case wire.Sealed:
		return "sealed: an operator must unlock the agent"
	case wire.Full:
		return "no space left: an operator must free some on the agent's disk; nothing was changed"
	case wire.Unavailable:
		return "unavailable: the agent cannot serve this now; try again"
	case wire.DeadlineExceeded:
		return "it took too long"
	case wire.Tampered:
		return "the stored record failed authentication; tell an operator"
	}
	return failure.Err.Error()
}

// newStatus makes the gRPC error.
func newStatus(failure wire.Failure, text, id string) error {
	st := status.New(failure.Code, text)
	details := []protoadapt.MessageV1{
		&errdetails.ErrorInfo{Reason: string(failure.Reason), Domain: wire.Domain},
		&errdetails.RequestInfo{RequestId: id},
	}
	detailed, err := st.WithDetails(details...)
	if err != nil { // only for codes.OK, which the table does not have
		return status.Error(codes.Internal, text)
	}
	return detailed.Err()
}
