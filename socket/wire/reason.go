// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"context"
	"errors"

	"google.golang.org/grpc/codes"

	"github.com/keyhole-agent/keyhole/secret"
)

// Names on the wire.
const (
	// RequestIDHeader is in the header of every answer. Its value is also in
	// the audit log and in the details of errors.
	RequestIDHeader = "keyhole-request-id"

	// Domain is that of the google.rpc.ErrorInfo in the details of errors.
	Domain = "keyhole"
)

// Reason is the machine-readable cause of an error.
type Reason string

// The reasons. They never change their meaning.
const (
	InvalidArgument  Reason = "INVALID_ARGUMENT"
	TooLarge         Reason = "TOO_LARGE"
	SecretNotFound   Reason = "SECRET_NOT_FOUND"
	PolicyNotFound   Reason = "POLICY_NOT_FOUND"
	PermissionDenied Reason = "PERMISSION_DENIED"
	Unauthenticated  Reason = "UNAUTHENTICATED"
	VersionConflict  Reason = "VERSION_CONFLICT"
	PathTaken        Reason = "PATH_TAKEN"
	Expired          Reason = "EXPIRED"
	Sealed           Reason = "SEALED"
	Unavailable      Reason = "UNAVAILABLE"
	Limited          Reason = "LIMITED"
	Full             Reason = "FULL"
	Tampered         Reason = "TAMPERED"
	NewerFormat      Reason = "NEWER_FORMAT"
	InUse            Reason = "IN_USE"
	DeadlineExceeded Reason = "DEADLINE_EXCEEDED"
	Canceled         Reason = "CANCELED"
	Unimplemented    Reason = "UNIMPLEMENTED"
	Internal         Reason = "INTERNAL"
)

// Failure is a row of the table between errors and the wire.
type Failure struct {
	Err    error // that errors.Is finds; nil for Internal
	Reason Reason
	Code   codes.Code

	// Public: the error's text is about what the caller sent or may know, and
	// is for everybody to see. Other texts tell about the agent, and are for
	// administrators.
	Public bool
}

// Failures returns the table. Where an error matches several rows, the first
// one counts. The last one is for everything else.
func Failures() []Failure {
	return []Failure{
		{secret.ErrUnauthenticated, Unauthenticated, codes.Unauthenticated, true},
		{secret.ErrDenied, PermissionDenied, codes.PermissionDenied, false},
		{secret.ErrSealed, Sealed, codes.Unavailable, false},
		{secret.ErrTampered, Tampered, codes.DataLoss, false},
		{secret.ErrNewerFormat, NewerFormat, codes.FailedPrecondition, false},
		{secret.ErrInUse, InUse, codes.FailedPrecondition, false},
		{secret.ErrFull, Full, codes.ResourceExhausted, false},
		{secret.ErrUnavailable, Unavailable, codes.Unavailable, false},
		{secret.ErrLimited, Limited, codes.ResourceExhausted, true},
		{secret.ErrTooLarge, TooLarge, codes.InvalidArgument, true},
		{secret.ErrInvalid, InvalidArgument, codes.InvalidArgument, true},
		{secret.ErrNotFound, SecretNotFound, codes.NotFound, true},
		{secret.ErrNotFound, PolicyNotFound, codes.NotFound, true},
		{secret.ErrConflict, VersionConflict, codes.Aborted, true},
		{secret.ErrExists, PathTaken, codes.AlreadyExists, true},
		{secret.ErrExpired, Expired, codes.FailedPrecondition, true},
		{context.DeadlineExceeded, DeadlineExceeded, codes.DeadlineExceeded, false},
		{context.Canceled, Canceled, codes.Canceled, false},
		{errors.ErrUnsupported, Unimplemented, codes.Unimplemented, true},
		{nil, Internal, codes.Internal, false},
	}
}

// FailureOf returns the row for an error.
func FailureOf(err error) Failure {
	table := Failures()
	for _, f := range table {
		if f.Err != nil && errors.Is(err, f.Err) {
			return f
		}
	}
	return table[len(table)-1]
}

// FailureFor returns the row for what came over the wire: a reason, or, when
// there is none that this version knows, a status code. gRPC makes errors of
// its own that have no reason.
func FailureFor(reason Reason, code codes.Code) Failure {
	table := Failures()
	for _, f := range table {
		if f.Reason == reason {
			return f
		}
	}
	switch code {
	case codes.ResourceExhausted: // gRPC's own: the message is larger than the receiver takes
		return FailureFor(TooLarge, code)
	case codes.Unavailable: // not sealed, as far as one can tell
		return FailureFor(Unavailable, code)
	case codes.InvalidArgument, codes.OutOfRange:
		return FailureFor(InvalidArgument, code)
	case codes.NotFound:
		return FailureFor(SecretNotFound, code)
	}
	for _, f := range table {
		if f.Code == code && code != codes.FailedPrecondition {
			return f
		}
	}
	return table[len(table)-1]
}
