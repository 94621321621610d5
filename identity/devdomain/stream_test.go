// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"context"
	"crypto/sha256"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/exp/proto/spiffe/broker"
	"github.com/spiffe/go-spiffe/v2/proto/spiffe/workload"
	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/svid/jwtsvid"
	"github.com/spiffe/go-spiffe/v2/svid/x509svid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
)

func sha256Of(content []byte) []byte {
	sum := sha256.Sum256(content)
	return sum[:]
}

// watcher hands on what a stream of the Workload API brings.
type watcher struct {
	updates chan *workloadapi.X509Context
	errors  chan error
}

func (w watcher) OnX509ContextUpdate(update *workloadapi.X509Context) { w.updates <- update }

func (w watcher) OnX509ContextWatchError(err error) { w.errors <- err }

// watch holds a stream of the Workload API open until the test ends.
func watch(t *testing.T, s *Server) watcher {
	t.Helper()
	w := watcher{make(chan *workloadapi.X509Context, 16), make(chan error, 16)}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = workloadapi.WatchX509Context(ctx, w, workloadapi.WithAddr(s.WorkloadAddress()))
	}()
	t.Cleanup(func() {
		cancel()
		<-ended
	})
	return w
}

func next[T any](t *testing.T, from <-chan T) T {
	t.Helper()
	select {
	case value := <-from:
		return value
	case <-time.After(time.Minute):
		t.Fatal("nothing arrived in a minute")
		panic("unreachable")
	}
}

func ownUser() *uint32 { return new(uint32(os.Getuid())) }

func TestAStreamSeesRotatedSVIDsAndAuthorities(t *testing.T) {
	s := start(t, Config{})
	w := watch(t, s)
	first := next(t, w.updates)

	s.RotateSVIDs()
	second := next(t, w.updates)
	if first.DefaultSVID().Certificates[0].Equal(second.DefaultSVID().Certificates[0]) {
		t.Error("the same SVID came again")
	}

	if err := s.RotateAuthorities(); err != nil {
		t.Fatal(err)
	}
	third := next(t, w.updates)
	if n := len(third.Bundles.Bundles()[0].X509Authorities()); n != 2 {
		t.Errorf("%d authorities after the rotation, want the old and the new", n)
	}
	for name, svid := range map[string]*x509svid.SVID{"old": second.DefaultSVID(), "new": third.DefaultSVID()} {
		if _, _, err := x509svid.Verify(svid.Certificates, third.Bundles); err != nil {
			t.Errorf("the %s SVID: %v", name, err)
		}
	}

	s.DropOldAuthorities()
	fourth := next(t, w.updates)
	if _, _, err := x509svid.Verify(second.DefaultSVID().Certificates, fourth.Bundles); err == nil {
		t.Error("an SVID of the dropped authority is still valid")
	}
	if _, _, err := x509svid.Verify(fourth.DefaultSVID().Certificates, fourth.Bundles); err != nil {
		t.Error(err)
	}
}

func TestSVIDsAreRenewedUnasked(t *testing.T) {
	w := watch(t, start(t, Config{SVIDLifetime: time.Second}))
	first := next(t, w.updates).DefaultSVID().Certificates[0]
	second := next(t, w.updates).DefaultSVID().Certificates[0]
	if !second.NotAfter.After(first.NotAfter) && second.SerialNumber.Cmp(first.SerialNumber) == 0 {
		t.Error("the same SVID came again")
	}
}

func TestAStreamFollowsTheRules(t *testing.T) {
	s := start(t, Config{})
	w := watch(t, s)
	next(t, w.updates)
	rule := Rule{IDs: []spiffeid.ID{dev("/web")}, UID: ownUser()}
	if err := s.SetRules([]Rule{rule}); err != nil {
		t.Fatal(err)
	}
	if id := next(t, w.updates).DefaultSVID().ID; id != dev("/web") {
		t.Errorf("the ID is %s", id)
	}
	rule.IDs = nil
	if err := s.SetRules([]Rule{rule}); err != nil {
		t.Fatal(err)
	}
	if err := next(t, w.errors); status.Code(err) != codes.PermissionDenied {
		t.Errorf("without entitlement the stream ended with %v", err)
	}
}

func TestFederatedBundlesReachWorkloads(t *testing.T) {
	s := start(t, Config{})
	twin := start(t, Config{TrustDomain: spiffeid.RequireTrustDomainFromString("twin.test")})
	w := watch(t, s)
	next(t, w.updates)
	s.SetFederated(twin.Bundle())
	bundles := next(t, w.updates).Bundles
	foreign, err := twin.Issue(Leaf{ID: spiffeid.RequireFromString("spiffe://twin.test/web")})
	if err != nil {
		t.Fatal(err)
	}
	id, _, err := x509svid.Verify(foreign.Certificates, bundles)
	if err != nil || id == dev("/web") || id.Path() != "/web" {
		t.Errorf("the twin's SVID is of %s, %v", id, err)
	}
}

func TestAJWTIsValidForItsAudienceOnly(t *testing.T) {
	s := start(t, Config{})
	ctx := t.Context()
	client, err := workloadapi.New(ctx, workloadapi.WithAddr(s.WorkloadAddress()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close() }()
	svid, err := client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "keyhole"})
	if err != nil {
		t.Fatal(err)
	}
	bundles, err := client.FetchJWTBundles(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := jwtsvid.ParseAndValidate(svid.Marshal(), bundles, []string{"keyhole"}); err != nil {
		t.Error(err)
	}
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "keyhole"); err != nil {
		t.Error(err)
	}
	if _, err := client.ValidateJWTSVID(ctx, svid.Marshal(), "another"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("another audience: %v", err)
	}
	_, err = client.FetchJWTSVID(ctx, jwtsvid.Params{Audience: "keyhole", Subject: dev("/somebody-else")})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("somebody else's ID: %v", err)
	}
	if _, err := client.FetchJWTSVID(ctx, jwtsvid.Params{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no audience: %v", err)
	}
}

func TestAWorkloadAPICallWithoutTheHeaderIsRefused(t *testing.T) {
	s := start(t, Config{})
	conn, err := grpc.NewClient(s.WorkloadAddress(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	for _, value := range []string{"", "false", "TRUE"} {
		ctx := t.Context()
		if value != "" {
			ctx = metadata.AppendToOutgoingContext(ctx, "workload.spiffe.io", value)
		}
		stream, err := workload.NewSpiffeWorkloadAPIClient(conn).FetchX509SVID(ctx, new(workload.X509SVIDRequest))
		if err == nil {
			_, err = stream.Recv()
		}
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("with %q: %v", value, err)
		}
	}
}

// askBroker returns a client of the Broker API that is id.
func askBroker(t *testing.T, s *Server, id spiffeid.ID) broker.APIClient {
	t.Helper()
	svid, err := s.Issue(Leaf{ID: id})
	if err != nil {
		t.Fatal(err)
	}
	conn, err := grpc.NewClient(s.BrokerAddress(), grpc.WithTransportCredentials(credentials.NewTLS(
		tlsconfig.MTLSClientConfig(svid, s, tlsconfig.AuthorizeID(s.config.BrokerID)))))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return broker.NewAPIClient(conn)
}

func reference(t *testing.T, pid int) *broker.WorkloadReference {
	t.Helper()
	packed, err := anypb.New(&broker.WorkloadPIDReference{Pid: int32(pid)})
	if err != nil {
		t.Fatal(err)
	}
	return &broker.WorkloadReference{Reference: packed}
}

func withHeader(ctx context.Context) context.Context {
	return metadata.AppendToOutgoingContext(ctx, "broker.spiffe.io", "true")
}

func firstX509(ctx context.Context, client broker.APIClient, about *broker.WorkloadReference) (*broker.SubscribeToX509SVIDResponse, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := client.SubscribeToX509SVID(ctx, &broker.SubscribeToX509SVIDRequest{Reference: about})
	if err != nil {
		return nil, err
	}
	return stream.Recv()
}

func TestTheBrokerAnswersTheConfiguredCallersOnly(t *testing.T) {
	self := dev("/keyhole")
	s := start(t, Config{Self: self})
	about := reference(t, os.Getpid())
	answer, err := firstX509(withHeader(t.Context()), askBroker(t, s, self), about)
	if err != nil || len(answer.GetSvids()) != 1 || answer.GetSvids()[0].GetSpiffeId() != self.String() {
		t.Errorf("the agent got %v, %v", answer.GetSvids(), err)
	}
	for _, other := range []spiffeid.ID{dev("/keyhole-not"), dev("/uid/0"), s.config.BrokerID} {
		if _, err := firstX509(withHeader(t.Context()), askBroker(t, s, other), about); status.Code(err) != codes.Unavailable {
			t.Errorf("%s got %v", other, err)
		}
	}
	if _, err := firstX509(t.Context(), askBroker(t, s, self), about); status.Code(err) != codes.InvalidArgument {
		t.Errorf("without the header: %v", err)
	}
}

func TestTheBrokerHasAnEmptyListForNobody(t *testing.T) {
	self := dev("/keyhole")
	s := start(t, Config{Self: self})
	client := askBroker(t, s, self)
	const nobody = 1<<22 + 1 // above the largest pid_max
	answer, err := firstX509(withHeader(t.Context()), client, reference(t, nobody))
	if err != nil || len(answer.GetSvids()) != 0 {
		t.Errorf("X.509: %v, %v", answer, err)
	}
	_, err = client.FetchJWTSVID(withHeader(t.Context()), &broker.FetchJWTSVIDRequest{Reference: reference(t, nobody), Audience: []string{"a"}})
	if status.Code(err) != codes.PermissionDenied {
		t.Errorf("JWT: %v", err)
	}
	for name, bad := range map[string]*broker.WorkloadReference{
		"none": nil, "empty": {}, "negative": reference(t, -1),
		"another kind": {Reference: &anypb.Any{TypeUrl: "type.googleapis.com/spiffe.broker.KubernetesObjectReference"}},
	} {
		if _, err := firstX509(withHeader(t.Context()), client, bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s reference: %v", name, err)
		}
	}
}

func TestABrokerStreamStaysOpenAndEmptiesWithTheEntry(t *testing.T) {
	self := dev("/keyhole")
	rule := Rule{IDs: []spiffeid.ID{dev("/web")}, UID: new(uint32(1001))}
	s := start(t, Config{Self: self, Rules: []Rule{rule}})
	pid := runAs(t, 1001)
	client := askBroker(t, s, self)
	stream, err := client.SubscribeToX509SVID(withHeader(t.Context()), &broker.SubscribeToX509SVIDRequest{Reference: reference(t, pid)})
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := stream.Recv(); err != nil || len(answer.GetSvids()) != 1 || answer.GetSvids()[0].GetSpiffeId() != dev("/web").String() {
		t.Fatalf("first: %v, %v", answer, err)
	}
	jwt, err := client.FetchJWTSVID(withHeader(t.Context()), &broker.FetchJWTSVIDRequest{Reference: reference(t, pid), Audience: []string{"a"}})
	if err != nil || len(jwt.GetSvids()) != 1 || jwt.GetSvids()[0].GetSpiffeId() != dev("/web").String() {
		t.Errorf("JWT: %v, %v", jwt, err)
	}
	rule.IDs = nil
	if err := s.SetRules([]Rule{rule}); err != nil {
		t.Fatal(err)
	}
	if answer, err := stream.Recv(); err != nil || len(answer.GetSvids()) != 0 {
		t.Errorf("after the entry was removed: %v, %v", answer, err)
	}
}

func TestABrokerCallerWhoseSVIDExpiredIsRefused(t *testing.T) {
	self := dev("/keyhole")
	var offset clock
	s := start(t, Config{Self: self, Now: offset.now})
	client := askBroker(t, s, self)
	about := reference(t, os.Getpid())
	if _, err := firstX509(withHeader(t.Context()), client, about); err != nil {
		t.Fatal(err)
	}
	offset.forward(2 * DefaultSVIDLifetime)
	if _, err := firstX509(withHeader(t.Context()), client, about); status.Code(err) != codes.Unauthenticated {
		t.Errorf("after the expiry: %v", err)
	}
}

func TestAFaultIsTheAnswer(t *testing.T) {
	s := start(t, Config{})
	var asked []string
	s.SetFault(func(_ context.Context, method string) error {
		asked = append(asked, method)
		return status.Error(codes.ResourceExhausted, "no")
	})
	if told := askAsChild(s.WorkloadAddress()); told.Code != codes.ResourceExhausted {
		t.Errorf("with a fault: %+v", told)
	}
	if !slices.Equal(asked, []string{"/SpiffeWorkloadAPI/FetchX509SVID"}) {
		t.Errorf("the fault saw %s", asked)
	}
	s.SetFault(nil)
	if told := askAsChild(s.WorkloadAddress()); len(told.X509) != 1 {
		t.Errorf("without it: %+v", told)
	}
}

func TestCloseEndsOpenStreams(t *testing.T) {
	s, err := New(Config{Dir: folder(t)})
	if err != nil {
		t.Fatal(err)
	}
	w := watch(t, s)
	next(t, w.updates)
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := next(t, w.errors); status.Code(err) != codes.Unavailable {
		t.Errorf("the stream ended with %v", err)
	}
	if err := s.Close(); err != nil {
		t.Error(err)
	}
}
