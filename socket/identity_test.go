// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/identity/process"
	"github.com/keyhole-agent/keyhole/identity/workload"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"
)

func TestACallOverMTLSReachesTheDoorAsItsSVID(t *testing.T) {
	f := start(t, nil)
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	var header metadata.MD
	_, err := secrets.Put(t.Context(), &pb.PutRequest{Path: "db/creds", Values: map[string][]byte{"password": []byte("x")}}, grpc.Header(&header))
	if err != nil {
		t.Fatal(err)
	}
	call := f.door.Calls()[0]
	if call.Operation != "put" || call.Caller.Source != identity.X509 || len(call.Caller.IDs) != 1 || call.Caller.IDs[0] != web {
		t.Errorf("the door was asked %+v", call)
	}
	if p := call.Caller.Process; p.PID != os.Getpid() || int(p.UID) != os.Getuid() {
		t.Errorf("the process is %+v", p)
	}
	if ids := header.Get(wire.RequestIDHeader); len(ids) != 1 || len(ids[0]) != 32 || ids[0] != call.Caller.Request {
		t.Errorf("the request's ID is %q in the answer and %q at the door", ids, call.Caller.Request)
	}
}

func TestAnInvalidCredentialEndsEveryRequest(t *testing.T) {
	processes := newPeers(func() (identity.Caller, error) { return identity.Caller{IDs: []spiffeid.ID{web}}, nil })
	f := start(t, func(c *socket.Config) { c.Peers = processes })
	other, err := devdomain.New(devdomain.Config{Dir: shortDir(t)})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(t, other.Close()) }()
	forged, err := other.Issue(devdomain.Leaf{ID: web})
	if err != nil {
		t.Fatal(err)
	}
	for name, path := range map[string]string{"workload": f.path, "admin": f.admin} {
		t.Run(name, func(t *testing.T) {
			conn := f.connect(t, path, forged)
			for _, service := range []grpc.ServiceDesc{
				pb.Secrets_ServiceDesc, pb.Admin_ServiceDesc, healthpb.Health_ServiceDesc, reflectionpb.ServerReflection_ServiceDesc,
			} {
				for _, method := range methods(service) {
					if err := invoke(t.Context(), conn, method); status.Code(err) != codes.Unauthenticated {
						t.Errorf("%s: %v", method, err)
					}
				}
			}
		})
	}
	for _, call := range f.door.Calls() {
		if call.Refused == nil || call.Caller.Source != identity.X509 || len(call.Caller.IDs) != 0 || call.Caller.Request == "" {
			t.Errorf("the door was asked %+v", call)
		}
		if !errors.Is(call.Refused, secret.ErrUnauthenticated) {
			t.Errorf("refused because: %v", call.Refused)
		}
	}
	if len(f.door.Calls()) == 0 {
		t.Error("no refusal was audited")
	}
	if processes.asked != 0 {
		t.Error("the process was asked although it offered a credential")
	}
}

// methods returns the full names of a service's methods.
func methods(service grpc.ServiceDesc) []string {
	var names []string
	for _, m := range service.Methods {
		names = append(names, "/"+service.ServiceName+"/"+m.MethodName)
	}
	for _, m := range service.Streams {
		names = append(names, "/"+service.ServiceName+"/"+m.StreamName)
	}
	return names
}

// invoke calls any method with an empty message and returns its error.
func invoke(ctx context.Context, conn *grpc.ClientConn, method string) error {
	stream, err := conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true, ClientStreams: true}, method)
	if err != nil {
		return err
	}
	// io.EOF says that it was answered already; RecvMsg has the answer.
	if err := stream.SendMsg(&pb.StatusRequest{}); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sending: %w", err)
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	return stream.RecvMsg(&pb.StatusResponse{})
}

func TestAnSVIDThatExpiresEndsAKeptConnection(t *testing.T) {
	f := start(t, nil)
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	if _, err := secrets.List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Fatal(err)
	}
	f.certs.Advance(24 * time.Hour)
	if _, err := secrets.List(t.Context(), &pb.ListRequest{}); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after the SVID expired: %v", err)
	}
	f.certs.Advance(-24 * time.Hour)
	if _, err := secrets.List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Errorf("with the clock back: %v", err)
	}
}

func TestAStreamEndsWithItsSVID(t *testing.T) {
	f := start(t, nil)
	end := time.Now().Add(10 * time.Minute).Truncate(time.Second)
	var deadline time.Time
	f.door.Fail = func(ctx context.Context, _ string) error {
		deadline, _ = ctx.Deadline()
		return nil
	}
	admin := pb.NewAdminClient(f.connect(t, f.admin, f.issue(t, devdomain.Leaf{ID: web, NotAfter: end})))
	stream, err := admin.Purge(t.Context(), &pb.PurgeRequest{DryRun: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	if !deadline.Equal(end) {
		t.Errorf("the stream may last until %s, its SVID until %s", deadline, end)
	}
}

func TestWithoutCredentialTheProcessIsIdentifiedForEachRequest(t *testing.T) {
	ids := []spiffeid.ID{web, spiffeid.RequireFromString("spiffe://dev.keyhole.test/uid/0")}
	processes := newPeers(func() (identity.Caller, error) {
		return identity.Caller{IDs: ids, Process: identity.Process{PID: 7, Executable: "/bin/true"}}, nil
	})
	f := start(t, func(c *socket.Config) { c.Peers = processes })
	conn := f.connect(t, f.path, nil)
	secrets := pb.NewSecretsClient(conn)
	for range 2 {
		if _, err := secrets.List(t.Context(), &pb.ListRequest{}); err != nil {
			t.Fatal(err)
		}
	}
	if processes.accepted != 1 || processes.asked != 2 {
		t.Errorf("accepted %d times and asked %d times", processes.accepted, processes.asked)
	}
	calls := f.door.Calls()
	if c := calls[0].Caller; c.Source != identity.Peer || len(c.IDs) != 2 || c.Process.PID != 7 {
		t.Errorf("the caller is %+v", c)
	}
	if calls[0].Caller.Request == calls[1].Caller.Request {
		t.Error("two requests have the same ID")
	}
	if err := conn.Close(); err != nil {
		t.Fatal(err)
	}
	check(t, f.stopServer(t.Context()))
	if processes.closed != 1 {
		t.Errorf("the process was let go %d times", processes.closed)
	}
}

func TestAProcessThatIsNotIdentifiedGetsNothing(t *testing.T) {
	none := func() (identity.Caller, error) { return identity.Caller{}, nil }
	cases := []struct {
		name  string
		peers socket.Peers
		code  codes.Code
		err   error
	}{
		{"not entitled to any ID", newPeers(none), codes.PermissionDenied, secret.ErrDenied},
		{"another process now", newPeers(func() (identity.Caller, error) {
			return identity.Caller{IDs: []spiffeid.ID{web}}, fmt.Errorf("it changed: %w", secret.ErrDenied)
		}), codes.PermissionDenied, secret.ErrDenied},
		{"broker down", newPeers(func() (identity.Caller, error) {
			return identity.Caller{}, secret.ErrUnavailable
		}), codes.Unavailable, secret.ErrUnavailable},
		{"gone when it was accepted", &peers{refuse: secret.ErrDenied}, codes.PermissionDenied, secret.ErrDenied},
		{"processes are not identified", nil, codes.Unauthenticated, secret.ErrUnauthenticated},
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			f := start(t, func(config *socket.Config) { config.Peers = c.peers })
			conn := f.connect(t, f.path, nil)
			for _, method := range methods(pb.Secrets_ServiceDesc) {
				if err := invoke(t.Context(), conn, method); status.Code(err) != c.code {
					t.Errorf("%s: %v", method, err)
				}
			}
			for _, call := range f.door.Calls() {
				if !errors.Is(call.Refused, c.err) || call.Caller.Process.PID == 0 || len(call.Caller.IDs) != 0 {
					t.Errorf("the door was asked %+v", call)
				}
			}
			if n := len(f.door.Calls()); n != len(methods(pb.Secrets_ServiceDesc)) {
				t.Errorf("%d refusals were audited", n)
			}
			if _, err := healthpb.NewHealthClient(conn).Check(t.Context(), &healthpb.HealthCheckRequest{}); err != nil {
				t.Errorf("health needs no identity: %v", err)
			}
		})
	}
}

// noSVID is an agent that waits for its SVID.
type noSVID struct{ socket.Certificates }

func (noSVID) ServerTLS() *tls.Config {
	return &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		return nil, fmt.Errorf("waiting: %w", secret.ErrUnavailable)
	}}
}

func TestAnAgentWithoutSVIDIsUnavailable(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Certificates = noSVID{} })
	_, err := pb.NewSecretsClient(f.asWeb(t, f.path)).List(t.Context(), &pb.ListRequest{})
	if status.Code(err) != codes.Unavailable {
		t.Errorf("%v", err)
	}
	if calls := f.door.Calls(); len(calls) != 0 {
		t.Errorf("audited as a refusal of the caller: %+v", calls)
	}
}

func TestAClientWithoutCertificateIsRefusedInTheHandshake(t *testing.T) {
	f := start(t, nil)
	config := f.certs.ClientTLS(f.issue(t, devdomain.Leaf{ID: web}))
	config.GetClientCertificate = nil
	config.Certificates = nil
	conn := tls.Client(dial(t, f.path), config)
	_ = conn.HandshakeContext(t.Context()) // under TLS 1.3 the client learns it with the next byte
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		t.Error("it was served")
	}
	check(t, f.stopServer(t.Context()))
	calls := f.door.Calls()
	if len(calls) != 1 || calls[0].Operation != "connect" || !errors.Is(calls[0].Refused, secret.ErrUnauthenticated) {
		t.Errorf("audited: %+v", calls)
	}
}

func TestATLSSessionIsNotResumed(t *testing.T) {
	f := start(t, nil)
	config := f.certs.ClientTLS(f.issue(t, devdomain.Leaf{ID: web}))
	config.ClientSessionCache = tls.NewLRUClientSessionCache(4)
	config.ServerName = "keyhole"
	for range 2 {
		conn := tls.Client(dial(t, f.path), config)
		if err := conn.HandshakeContext(t.Context()); err != nil {
			t.Fatal(err)
		}
		// The server's first frame comes after any ticket.
		if _, err := conn.Write([]byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")); err != nil {
			t.Fatal(err)
		}
		if _, err := conn.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		if conn.ConnectionState().DidResume {
			t.Error("the session was resumed, and with it a verification of the past")
		}
	}
}

func TestAClientThatDoesNotAskForHTTP2IsClosed(t *testing.T) {
	f := start(t, nil)
	config := f.certs.ClientTLS(f.issue(t, devdomain.Leaf{ID: web}))
	config.NextProtos = nil
	conn := tls.Client(dial(t, f.path), config)
	if err := conn.HandshakeContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(make([]byte, 1)); n != 0 || err == nil {
		t.Error("it was served")
	}
}

// The doors of the agent are these.
var (
	_ socket.Certificates = (*workload.Source)(nil)
	_ socket.Peers        = (*process.Table)(nil)
)

func TestAnSVIDOfAWithdrawnAuthorityEndsAKeptConnection(t *testing.T) {
	var source *workload.Source
	f := start(t, func(c *socket.Config) {
		folder := shortDir(t)
		domain, err := devdomain.New(devdomain.Config{Dir: folder})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { check(t, domain.Close()) })
		source, err = workload.Open(t.Context(), workload.Config{Address: domain.WorkloadAddress()})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { check(t, source.Close()) })
		c.Certificates = realDomain{source, domain}
	})
	<-source.Ready()
	domain := f.config.Certificates.(realDomain).domain
	svid, err := domain.Issue(devdomain.Leaf{ID: web})
	if err != nil {
		t.Fatal(err)
	}
	transport := credentials.NewTLS(workload.ClientTLS(svid, domain, tlsconfig.AuthorizeID(source.ID())))
	conn, err := grpc.NewClient("unix:"+f.path, grpc.WithTransportCredentials(transport))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { check(t, conn.Close()) }()
	secrets := pb.NewSecretsClient(conn)
	if _, err := secrets.List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Fatal(err)
	}
	if err := domain.RotateAuthorities(); err != nil {
		t.Fatal(err)
	}
	domain.DropOldAuthorities()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for err == nil { // until the agent has heard of it
		_, err = secrets.List(ctx, &pb.ListRequest{})
	}
	if status.Code(err) != codes.Unauthenticated {
		t.Error(err)
	}
}

// realDomain is the agent's own way to its SVID and bundles.
type realDomain struct {
	*workload.Source
	domain *devdomain.Server
}
