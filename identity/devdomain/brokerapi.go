// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"context"
	"crypto/tls"
	"sync"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	grpcpeer "google.golang.org/grpc/peer"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/identity/process"
	"github.com/keyhole-agent/keyhole/identity/workload"
)

// brokerAPI serves the SPIFFE Broker API for references to processes.
type brokerAPI struct {
	broker.UnimplementedAPIServer
	*Server
}

var _ broker.APIServer = brokerAPI{}

func (s *Server) newBrokerServer() *grpc.Server {
	config := tlsconfig.MTLSServerConfig(&ownSVID{server: s}, s,
		workload.Strict(tlsconfig.AuthorizeOneOf(s.config.BrokerCallers...)))
	config.MinVersion = tls.VersionTLS13
	config.SessionTicketsDisabled = true
	server := s.newGRPC(credentials.NewTLS(config), "broker.spiffe.io", s.checkBroker)
	broker.RegisterAPIServer(server, brokerAPI{Server: s})
	return server
}

// checkBroker refuses a caller whose SVID has expired since it connected.
func (s *Server) checkBroker(ctx context.Context, _ string) error {
	if p, ok := grpcpeer.FromContext(ctx); ok {
		if info, ok := p.AuthInfo.(credentials.TLSInfo); ok && len(info.State.PeerCertificates) > 0 &&
			!s.config.Now().After(info.State.PeerCertificates[0].NotAfter) {
			return nil
		}
	}
	return status.Error(codes.Unauthenticated, "the SVID of the connection has expired")
}

// ownSVID is the Broker API server's own SVID, made anew when it is due.
type ownSVID struct {
	server *Server

	mu   sync.Mutex
	svid *x509svid.SVID
	by   *state    // that it was made with
	due  time.Time // for another one
}

var _ x509svid.Source = (*ownSVID)(nil)

func (o *ownSVID) GetX509SVID() (*x509svid.SVID, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	by, _ := o.server.current()
	now := o.server.config.Now()
	if o.by == by && now.Before(o.due) {
		return o.svid, nil
	}
	svid, err := o.server.issue(by.authority, Leaf{ID: o.server.config.BrokerID})
	if err != nil {
		return nil, err
	}
	o.svid, o.by, o.due = svid, by, now.Add(o.server.renewal())
	return svid, nil
}

// refer holds the process that a request is about; nil without an error when
// there is none. The error has a gRPC status.
func (b brokerAPI) refer(to *broker.WorkloadReference) (*holder, error) {
	if to.GetReference().GetTypeUrl() == "" {
		return nil, status.Error(codes.InvalidArgument, "workload reference must be provided")
	}
	var reference broker.WorkloadPIDReference
	if err := to.GetReference().UnmarshalTo(&reference); err != nil {
		return nil, status.Errorf(codes.InvalidArgument, "only references to processes are supported: %v", err)
	}
	if reference.GetPid() < 1 {
		return nil, status.Errorf(codes.InvalidArgument, "invalid process id %d", reference.GetPid())
	}
	who, err := process.Open(int(reference.GetPid()))
	if err != nil {
		b.config.Logger.Debug("the broker was asked about a process that is nobody's workload", "pid", reference.GetPid(), "reason", err)
		return nil, nil
	}
	return hold(who), nil
}

func (b brokerAPI) SubscribeToX509SVID(request *broker.SubscribeToX509SVIDRequest, stream broker.API_SubscribeToX509SVIDServer) error {
	who, err := b.refer(request.GetReference())
	if err != nil {
		return err
	}
	if who != nil {
		defer who.release()
	}
	return b.follow(stream.Context(), func(by *state) error {
		svids, err := b.x509SVIDs(by, b.idsOf(by, who))
		if err != nil {
			return err
		}
		answer := &broker.SubscribeToX509SVIDResponse{FederatedBundles: by.foreignX509()}
		for _, svid := range svids {
			answer.Svids = append(answer.Svids, &broker.X509SVID{
				SpiffeId: svid.id.String(), X509Svid: svid.chain, X509SvidKey: svid.key, Bundle: svid.bundle,
			})
		}
		return stream.Send(answer)
	})
}

func (b brokerAPI) idsOf(by *state, who *holder) []spiffeid.ID {
	if who == nil {
		return nil
	}
	return b.entitled(by, who)
}

func (b brokerAPI) SubscribeToX509Bundles(request *broker.SubscribeToX509BundlesRequest, stream broker.API_SubscribeToX509BundlesServer) error {
	who, err := b.refer(request.GetReference())
	if err != nil {
		return err
	}
	if who == nil {
		return noIdentity()
	}
	defer who.release()
	return b.follow(stream.Context(), func(by *state) error {
		return stream.Send(&broker.SubscribeToX509BundlesResponse{Bundles: by.allX509()})
	})
}

func (b brokerAPI) FetchJWTSVID(_ context.Context, request *broker.FetchJWTSVIDRequest) (*broker.FetchJWTSVIDResponse, error) {
	who, err := b.refer(request.GetReference())
	if err != nil {
		return nil, err
	}
	if who != nil {
		defer who.release()
	}
	by, _ := b.current()
	tokens, err := b.jwtSVIDs(by, b.idsOf(by, who), request.GetAudience(), request.GetSpiffeId())
	if err != nil {
		return nil, err
	}
	answer := new(broker.FetchJWTSVIDResponse)
	for _, svid := range tokens {
		answer.Svids = append(answer.Svids, &broker.JWTSVID{SpiffeId: svid.id.String(), Svid: svid.token})
	}
	return answer, nil
}

func (b brokerAPI) SubscribeToJWTBundles(request *broker.SubscribeToJWTBundlesRequest, stream broker.API_SubscribeToJWTBundlesServer) error {
	who, err := b.refer(request.GetReference())
	if err != nil {
		return err
	}
	if who == nil {
		return noIdentity()
	}
	defer who.release()
	return b.follow(stream.Context(), func(by *state) error {
		bundles, err := by.allJWT()
		if err != nil {
			return err
		}
		return stream.Send(&broker.SubscribeToJWTBundlesResponse{Bundles: bundles})
	})
}
