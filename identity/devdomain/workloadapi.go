// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"context"

	"github.com/spiffe/go-spiffe/v2/bundle/spiffebundle"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/structpb"
)

// workloadAPI serves the SPIFFE Workload API without its WIT-SVID profile.
type workloadAPI struct {
	workload.UnimplementedSpiffeWorkloadAPIServer
	*Server
}

var _ workload.SpiffeWorkloadAPIServer = workloadAPI{}

func (s *Server) newWorkloadServer() *grpc.Server {
	server := s.newGRPC(peerCredentials{}, "workload.spiffe.io", nil)
	workload.RegisterSpiffeWorkloadAPIServer(server, workloadAPI{Server: s})
	return server
}

// ids returns the IDs of the process that made a call, or an error with the
// status that the standard has for a process without any (section 5.2.1).
func (a workloadAPI) ids(ctx context.Context, by *state) ([]spiffeid.ID, error) {
	who, err := caller(ctx)
	if err != nil {
		return nil, err
	}
	if ids := a.entitled(by, who); len(ids) > 0 {
		return ids, nil
	}
	return nil, noIdentity()
}

func (a workloadAPI) FetchX509SVID(_ *workload.X509SVIDRequest, stream workload.SpiffeWorkloadAPI_FetchX509SVIDServer) error {
	return a.follow(stream.Context(), func(by *state) error {
		ids, err := a.ids(stream.Context(), by)
		if err != nil {
			return err
		}
		svids, err := a.x509SVIDs(by, ids)
		if err != nil {
			return err
		}
		answer := &workload.X509SVIDResponse{FederatedBundles: by.foreignX509()}
		for _, svid := range svids {
			answer.Svids = append(answer.Svids, &workload.X509SVID{
				SpiffeId: svid.id.String(), X509Svid: svid.chain, X509SvidKey: svid.key, Bundle: svid.bundle,
			})
		}
		return stream.Send(answer)
	})
}

func (a workloadAPI) FetchX509Bundles(_ *workload.X509BundlesRequest, stream workload.SpiffeWorkloadAPI_FetchX509BundlesServer) error {
	return a.follow(stream.Context(), func(by *state) error {
		if _, err := a.ids(stream.Context(), by); err != nil {
			return err
		}
		return stream.Send(&workload.X509BundlesResponse{Bundles: by.allX509()})
	})
}

func (a workloadAPI) FetchJWTSVID(ctx context.Context, request *workload.JWTSVIDRequest) (*workload.JWTSVIDResponse, error) {
	by, _ := a.current()
	ids, err := a.ids(ctx, by)
	if err != nil {
		return nil, err
	}
	tokens, err := a.jwtSVIDs(by, ids, request.GetAudience(), request.GetSpiffeId())
	if err != nil {
		return nil, err
	}
	answer := new(workload.JWTSVIDResponse)
	for _, svid := range tokens {
		answer.Svids = append(answer.Svids, &workload.JWTSVID{SpiffeId: svid.id.String(), Svid: svid.token})
	}
	return answer, nil
}

func (a workloadAPI) FetchJWTBundles(_ *workload.JWTBundlesRequest, stream workload.SpiffeWorkloadAPI_FetchJWTBundlesServer) error {
	return a.follow(stream.Context(), func(by *state) error {
		if _, err := a.ids(stream.Context(), by); err != nil {
			return err
		}
		bundles, err := by.allJWT()
		if err != nil {
			return err
		}
		return stream.Send(&workload.JWTBundlesResponse{Bundles: bundles})
	})
}

func (a workloadAPI) ValidateJWTSVID(ctx context.Context, request *workload.ValidateJWTSVIDRequest) (*workload.ValidateJWTSVIDResponse, error) {
	by, _ := a.current()
	if _, err := a.ids(ctx, by); err != nil {
		return nil, err
	}
	if request.GetAudience() == "" || request.GetSvid() == "" {
		return nil, status.Error(codes.InvalidArgument, "audience and svid must be specified")
	}
	trusted := spiffebundle.NewSet(append([]*spiffebundle.Bundle{by.authority.bundle}, by.federated...)...)
	svid, err := jwtsvid.ParseAndValidate(request.GetSvid(), trusted, []string{request.GetAudience()})
	if err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	claims, err := structpb.NewStruct(svid.Claims)
	if err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "encoding the claims: %v", err)
	}
	return &workload.ValidateJWTSVIDResponse{SpiffeId: svid.ID.String(), Claims: claims}, nil
}
