// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"context"
	"slices"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// maxRequestBytes bounds a request; the largest carries one JWT-SVID.
const maxRequestBytes = 64 << 10

// handshakeTimeout bounds how long a connection may take to become one.
const handshakeTimeout = 10 * time.Second

// Fault decides before a call is answered whether it will be. method is gRPC's
// full name of it: "/spiffe.broker.API/SubscribeToX509SVID". It may take its
// time, until ctx ends; an error, best one with a gRPC status, is the answer
// instead of the real one. It may run for several calls at once.
type Fault func(ctx context.Context, method string) error

// SetFault makes every call to either server from now on ask f first. nil ends
// that. Streams that are open already go on.
func (s *Server) SetFault(f Fault) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fault = f
}

// gate is what a call passes before it is answered.
type gate func(ctx context.Context, method string) error

// newGRPC makes a server whose calls must carry the metadata key with the value
// "true", and pass check if there is one.
func (s *Server) newGRPC(creds credentials.TransportCredentials, key string, check gate) *grpc.Server {
	enter := func(ctx context.Context, method string) error {
		if values := metadata.ValueFromIncomingContext(ctx, key); !slices.Equal(values, []string{"true"}) {
			return status.Errorf(codes.InvalidArgument, "security header missing from request: %s must be true", key)
		}
		if check != nil {
			if err := check(ctx, method); err != nil {
				return err
			}
		}
		s.mu.Lock()
		fault := s.fault
		s.mu.Unlock()
		if fault == nil {
			return nil
		}
		return fault(ctx, method)
	}
	return grpc.NewServer(
		grpc.Creds(creds),
		grpc.MaxRecvMsgSize(maxRequestBytes),
		grpc.ConnectionTimeout(handshakeTimeout),
		grpc.WaitForHandlers(true),
		grpc.UnaryInterceptor(func(ctx context.Context, request any, info *grpc.UnaryServerInfo, answer grpc.UnaryHandler) (any, error) {
			if err := enter(ctx, info.FullMethod); err != nil {
				return nil, err
			}
			return answer(ctx, request)
		}),
		grpc.StreamInterceptor(func(service any, stream grpc.ServerStream, info *grpc.StreamServerInfo, answer grpc.StreamHandler) error {
			if err := enter(stream.Context(), info.FullMethod); err != nil {
				return err
			}
			return answer(service, stream)
		}),
	)
}

// renewal is how long an SVID is handed out before another one is.
func (s *Server) renewal() time.Duration { return s.config.SVIDLifetime * 2 / 5 }

// follow keeps a stream open: it sends at once, whenever the state changes, and
// when SVIDs are due for renewal.
func (s *Server) follow(ctx context.Context, send func(*state) error) error {
	for {
		now, changed := s.current()
		if err := send(now); err != nil {
			return err
		}
		renew := time.NewTimer(s.renewal())
		select {
		case <-changed:
		case <-renew.C:
		case <-ctx.Done():
		}
		renew.Stop()
		if err := ctx.Err(); err != nil {
			return status.FromContextError(err).Err()
		}
	}
}

// x509SVID is an SVID as both APIs send it, in DER.
type x509SVID struct {
	id                 spiffeid.ID
	chain, key, bundle []byte
}

func (s *Server) x509SVIDs(by *state, ids []spiffeid.ID) ([]x509SVID, error) {
	made := make([]x509SVID, 0, len(ids))
	for _, id := range ids {
		svid, err := s.issue(by.authority, Leaf{ID: id})
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		chain, key, err := svid.MarshalRaw()
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		made = append(made, x509SVID{id: id, chain: chain, key: key, bundle: x509DER(by.authority.bundle)})
	}
	return made, nil
}

// jwtSVID is a token as both APIs send it.
type jwtSVID struct {
	id    spiffeid.ID
	token string
}

// jwtSVIDs makes tokens for the IDs, or for the wanted one of them if that is
// not "". The error has a gRPC status.
func (s *Server) jwtSVIDs(by *state, ids []spiffeid.ID, audience []string, wanted string) ([]jwtSVID, error) {
	if len(audience) == 0 || slices.Contains(audience, "") {
		return nil, status.Error(codes.InvalidArgument, "audience must be specified")
	}
	if wanted != "" {
		id, err := spiffeid.FromString(wanted)
		if err != nil {
			return nil, status.Errorf(codes.InvalidArgument, "invalid requested SPIFFE ID: %v", err)
		}
		ids = slices.DeleteFunc(slices.Clone(ids), func(other spiffeid.ID) bool { return other != id })
	}
	if len(ids) == 0 {
		return nil, noIdentity()
	}
	made := make([]jwtSVID, 0, len(ids))
	for _, id := range ids {
		token, err := s.issueJWT(by.authority, id, audience)
		if err != nil {
			return nil, status.Error(codes.Internal, err.Error())
		}
		made = append(made, jwtSVID{id: id, token: token})
	}
	return made, nil
}

func noIdentity() error { return status.Error(codes.PermissionDenied, "no identity issued") }
