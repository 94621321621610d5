// SPDX-License-Identifier: Apache-2.0

package client

import (
	"errors"
	"fmt"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/socket/wire"
)

// Error is what the agent answered instead of a result.
type Error struct {
	Reason  wire.Reason // "" when the error was not made by Keyhole
	Message string      // in the agent's words
	Request string      // the request's ID in the agent's log and audit log; "" when it got none
	Code    codes.Code  // gRPC's

	err error // of package secret, context or errors; nil for an internal error
}

// Error returns the message.
func (e *Error) Error() string { return e.Message }

// Unwrap returns the error of package secret that this one is.
func (e *Error) Unwrap() error { return e.err }

// failed translates what gRPC returned. When there was no connection, it says
// why.
func (l *link) failed(doing string, err error) error {
	st := status.Convert(err)
	e := &Error{Message: st.Message(), Code: st.Code()}
	for _, detail := range st.Details() {
		switch d := detail.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == wire.Domain {
				e.Reason = wire.Reason(d.GetReason())
			}
		case *errdetails.RequestInfo:
			e.Request = d.GetRequestId()
		}
	}
	failure := wire.FailureFor(e.Reason, e.Code)
	e.err = failure.Err
	if e.Reason == "" && e.Code == codes.Unavailable {
		if trouble := l.lastTrouble(); trouble != nil {
			return fmt.Errorf("%s: %w", doing, trouble)
		}
	}
	// A message that does not say what kind of error it is would not tell enough.
	if e.Reason == "" && failure.Err != nil && !errors.Is(err, failure.Err) {
		e.Message = failure.Err.Error() + ": " + e.Message
	}
	return fmt.Errorf("%s: %w", doing, e)
}
