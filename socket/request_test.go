// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/sockettest"
	"github.com/keyhole-agent/keyhole/socket/wire"
)

// details returns the reason and the request ID of an error.
func details(err error) (reason, request string) {
	for _, d := range status.Convert(err).Details() {
		switch d := d.(type) {
		case *errdetails.ErrorInfo:
			if d.GetDomain() == wire.Domain {
				reason = d.GetReason()
			}
		case *errdetails.RequestInfo:
			request = d.GetRequestId()
		}
	}
	return reason, request
}

func TestEachErrorHasItsCodeReasonAndRequestID(t *testing.T) {
	log := &lockedBuffer{}
	f := start(t, func(c *socket.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	var fails error
	f.door.Fail = func(context.Context, string) error { return fails }
	secrets, admin := pb.NewSecretsClient(f.asWeb(t, f.path)), pb.NewAdminClient(f.asWeb(t, f.admin))
	for _, row := range wire.Failures() {
		if row.Reason == wire.PolicyNotFound {
			continue // below
		}
		t.Run(string(row.Reason), func(t *testing.T) {
			cause := row.Err
			if cause == nil {
				cause = errors.New("of no known kind")
			}
			fails = fmt.Errorf("in the depths of node-17: %w", cause)
			var header metadata.MD
			_, err := secrets.Get(t.Context(), &pb.GetRequest{Path: "db/creds"}, grpc.Header(&header))
			reason, request := details(err)
			if status.Code(err) != row.Code || reason != string(row.Reason) {
				t.Errorf("code %v, reason %s", status.Code(err), reason)
			}
			if ids := header.Get(wire.RequestIDHeader); len(ids) != 1 || request != ids[0] || len(request) != 32 {
				t.Errorf("request %q in the details, %q in the header", request, ids)
			}
			if told := strings.Contains(err.Error(), "node-17"); told != row.Public {
				t.Errorf("the workload reads %q", err)
			}
			_, err = admin.Status(t.Context(), &pb.StatusRequest{})
			if told := strings.Contains(err.Error(), "node-17"); told != (row.Reason != wire.Internal) {
				t.Errorf("the administrator reads %q", err)
			}
			if row.Reason == wire.Internal && (!strings.Contains(err.Error(), "log") || !strings.Contains(log.String(), "node-17") || !strings.Contains(log.String(), request)) {
				t.Errorf("told %q, logged %q", err, log)
			}
		})
	}
	fails = nil
	_, err := admin.DeletePolicy(t.Context(), &pb.DeletePolicyRequest{Name: "none"})
	if reason, _ := details(err); status.Code(err) != codes.NotFound || reason != string(wire.PolicyNotFound) {
		t.Errorf("of a policy that is not there: %v, reason %s", err, reason)
	}
}

// lockedBuffer is a bytes.Buffer for several goroutines.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func TestAPanicIsOneFailedRequest(t *testing.T) {
	log := &lockedBuffer{}
	f := start(t, func(c *socket.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) })
	f.door.Fail = func(_ context.Context, operation string) error {
		if operation == "get" || operation == "purge" {
			panic("out of bounds in node-17")
		}
		return nil
	}
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	_, err := secrets.Get(t.Context(), &pb.GetRequest{Path: "db/creds"})
	purge, streamErr := pb.NewAdminClient(f.asWeb(t, f.admin)).Purge(t.Context(), &pb.PurgeRequest{DryRun: true})
	if streamErr != nil {
		t.Fatal(streamErr)
	}
	_, streamErr = purge.Recv()
	for _, err := range []error{err, streamErr} {
		_, request := details(err)
		if status.Code(err) != codes.Internal || strings.Contains(err.Error(), "node-17") || !strings.Contains(log.String(), request) {
			t.Errorf("%v, logged %q", err, log)
		}
	}
	if _, err := secrets.List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestEveryRequestHasADeadline(t *testing.T) {
	f := start(t, func(c *socket.Config) {
		c.Limits.Deadline, c.Limits.MaxDeadline, c.Limits.MaxStream = time.Hour, 2*time.Hour, 3*time.Hour
	})
	var left time.Duration
	f.door.Fail = func(ctx context.Context, _ string) error {
		deadline, _ := ctx.Deadline()
		left = time.Until(deadline)
		return nil
	}
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	list := func(asked time.Duration) time.Duration {
		ctx := t.Context()
		if asked != 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, asked)
			defer cancel()
		}
		if _, err := secrets.List(ctx, &pb.ListRequest{}); err != nil {
			t.Fatal(err)
		}
		return left
	}
	for asked, want := range map[time.Duration]time.Duration{0: time.Hour, 30 * time.Minute: 30 * time.Minute, 24 * time.Hour: 2 * time.Hour} {
		if got := list(asked); got > want || got < want-10*time.Minute {
			t.Errorf("asked for %s, got %s", asked, got)
		}
	}
}

func TestARequestEndsAtItsDeadline(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Limits.Deadline = 10 * time.Millisecond })
	f.door.Fail = func(ctx context.Context, _ string) error {
		<-ctx.Done()
		return fmt.Errorf("waiting for the store: %w", ctx.Err())
	}
	_, err := pb.NewSecretsClient(f.asWeb(t, f.path)).List(t.Context(), &pb.ListRequest{})
	if reason, _ := details(err); status.Code(err) != codes.DeadlineExceeded || reason != string(wire.DeadlineExceeded) {
		t.Errorf("%v, reason %s", err, reason)
	}
}

func TestAMessageThatIsTooLargeIsRefused(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Limits.Request = 4096 })
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	_, err := secrets.Put(t.Context(), &pb.PutRequest{Path: "db/creds", Values: map[string][]byte{"a": make([]byte, 5000)}})
	if status.Code(err) != codes.ResourceExhausted || len(f.door.Calls()) != 0 {
		t.Errorf("%v", err)
	}
	if _, err := secrets.List(t.Context(), &pb.ListRequest{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

func TestBadRequestsDoNotReachTheDoor(t *testing.T) {
	f := start(t, nil)
	secrets, admin := pb.NewSecretsClient(f.asWeb(t, f.path)), pb.NewAdminClient(f.asWeb(t, f.admin))
	ctx := t.Context()
	purge := func(request *pb.PurgeRequest) error {
		stream, err := admin.Purge(ctx, request)
		if err != nil {
			return err
		}
		_, err = stream.Recv()
		return err
	}
	only := func(_ any, err error) error { return err }
	for name, err := range map[string]error{
		"get of a folder's slash":     only(secrets.Get(ctx, &pb.GetRequest{Path: "db/"})),
		"get of nothing":              only(secrets.Get(ctx, &pb.GetRequest{})),
		"describe of ..":              only(secrets.Describe(ctx, &pb.DescribeRequest{Path: "../x"})),
		"put without values":          only(secrets.Put(ctx, &pb.PutRequest{Path: "a"})),
		"put of a bad key":            only(secrets.Put(ctx, &pb.PutRequest{Path: "a", Values: map[string][]byte{"a/b": nil}})),
		"delete of version 0":         only(secrets.Delete(ctx, &pb.DeleteRequest{Path: "a", Versions: []uint64{1, 0}})),
		"delete of all and some":      only(secrets.Delete(ctx, &pb.DeleteRequest{Path: "a", Versions: []uint64{1}, AllVersions: true})),
		"list of a negative page":     only(secrets.List(ctx, &pb.ListRequest{PageSize: -1})),
		"list with a made-up token":   only(secrets.List(ctx, &pb.ListRequest{PageToken: "?"})),
		"list with a malformed path":  only(secrets.List(ctx, &pb.ListRequest{PageToken: "Ly8"})),
		"list with a foreign token":   only(secrets.List(ctx, &pb.ListRequest{Prefix: "db", PageToken: "ZXRjL3g"})),
		"explain without permission":  only(secrets.Explain(ctx, &pb.ExplainRequest{Path: "a"})),
		"explain of a future one":     only(secrets.Explain(ctx, &pb.ExplainRequest{Path: "a", Permission: 99})),
		"explain as nobody":           only(admin.Explain(ctx, &pb.AdminExplainRequest{SpiffeId: "web", Path: "a", Permission: pb.Permission_PERMISSION_READ})),
		"policy without permission":   only(admin.ApplyPolicies(ctx, &pb.ApplyPoliciesRequest{Policies: []*pb.Policy{{Permissions: []pb.Permission{0}}}})),
		"purge with neither":          purge(&pb.PurgeRequest{}),
		"purge with both":             purge(&pb.PurgeRequest{Force: true, DryRun: true}),
		"purge of a bad prefix":       purge(&pb.PurgeRequest{DryRun: true, Prefix: "/"}),
		"purge of a negative age":     purge(&pb.PurgeRequest{DryRun: true, OlderThan: durationpb.New(-1)}),
		"purge of an impossible age":  purge(&pb.PurgeRequest{DryRun: true, OlderThan: &durationpb.Duration{Nanos: 2e9}}),
		"put of more than a megabyte": only(secrets.Put(ctx, &pb.PutRequest{Path: "a", Values: map[string][]byte{"a": make([]byte, 1<<20)}})),
	} {
		if status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
	if calls := f.door.Calls(); len(calls) != 0 {
		t.Errorf("the door was asked %+v", calls)
	}
}

func TestWhatIsServedElsewhereIsNamed(t *testing.T) {
	f := start(t, nil)
	_, err := pb.NewAdminClient(f.asWeb(t, f.path)).Status(t.Context(), &pb.StatusRequest{})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "admin socket") {
		t.Errorf("Admin on the workload socket: %v", err)
	}
	_, err = pb.NewSecretsClient(f.asWeb(t, f.admin)).List(t.Context(), &pb.ListRequest{})
	if status.Code(err) != codes.Unimplemented || !strings.Contains(err.Error(), "workload socket") {
		t.Errorf("Secrets on the admin socket: %v", err)
	}
	if err := invoke(t.Context(), f.asWeb(t, f.path), "/no.such/Method"); status.Code(err) != codes.Unimplemented {
		t.Errorf("something that there is not: %v", err)
	}
}

func TestReflectionShowsWhatIsServed(t *testing.T) {
	f := start(t, nil)
	for path, want := range map[string]string{
		f.path:  "grpc.health.v1.Health keyhole.v1.Secrets",
		f.admin: "grpc.health.v1.Health keyhole.v1.Admin",
	} {
		stream, err := reflectionpb.NewServerReflectionClient(f.connect(t, path, nil)).ServerReflectionInfo(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		ask := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}
		if err := errors.Join(stream.Send(ask), stream.CloseSend()); err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, s := range answer.GetListServicesResponse().GetService() {
			if !strings.HasPrefix(s.GetName(), "grpc.reflection.") {
				names = append(names, s.GetName())
			}
		}
		if strings.Join(names, " ") != want {
			t.Errorf("%q, want %q", names, want)
		}
	}
}

// keeping keeps the values that went through.
type keeping struct {
	*sockettest.Door
	got, put secret.Values
}

func (k *keeping) Get(ctx context.Context, caller identity.Caller, path secret.Path, version secret.Version) (secret.Secret, error) {
	found, err := k.Door.Get(ctx, caller, path, version)
	k.got = found.Values
	return found, err
}

func (k *keeping) Put(ctx context.Context, caller identity.Caller, path secret.Path, values secret.Values) (secret.Info, error) {
	k.put = values
	return k.Door.Put(ctx, caller, path, values)
}

func TestValuesAreClearedOnceTheyWereSent(t *testing.T) {
	k := &keeping{}
	f := start(t, func(c *socket.Config) {
		k.Door = c.Secrets.(*sockettest.Door)
		c.Secrets = k
	})
	secrets := pb.NewSecretsClient(f.asWeb(t, f.path))
	sent := map[string][]byte{"password": []byte("hunter2"), "key": bytes.Repeat([]byte{7}, 5000)}
	if _, err := secrets.Put(t.Context(), &pb.PutRequest{Path: "db/creds", Values: sent}); err != nil {
		t.Fatal(err)
	}
	answer, err := secrets.Get(t.Context(), &pb.GetRequest{Path: "db/creds"})
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range sent {
		if !bytes.Equal(answer.GetSecret().GetValues()[key], value) {
			t.Errorf("%s came back as %q", key, answer.GetSecret().GetValues()[key])
		}
	}
	for name, values := range map[string]secret.Values{"got": k.got, "put": k.put} {
		if values.Len() != 2 {
			t.Errorf("%s %d values", name, values.Len())
		}
		for key, value := range values.All() {
			if len(bytes.Trim(value, "\x00")) != 0 {
				t.Errorf("%s is still there after it was %s", key, name)
			}
		}
	}
}

// manySteps reports more paths at once than go into a message.
type manySteps struct{ *sockettest.Door }

func (manySteps) Purge(_ context.Context, _ identity.Caller, _ secret.Purge, report func(secret.PurgeProgress) error) error {
	progress := secret.PurgeProgress{Found: 2500}
	for i := range progress.Found {
		progress.Paths = append(progress.Paths, secret.MustParsePath(fmt.Sprintf("old/%d", i)))
	}
	return report(progress)
}

func (manySteps) Policies(context.Context, identity.Caller) ([]policy.Policy, error) {
	return make([]policy.Policy, 1201), nil
}

func TestLongAnswersComeInBoundedMessages(t *testing.T) {
	f := start(t, func(c *socket.Config) { c.Administration = manySteps{} })
	admin := pb.NewAdminClient(f.asWeb(t, f.admin))
	purge, err := admin.Purge(t.Context(), &pb.PurgeRequest{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for {
		step, err := purge.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(step.GetPaths()))
	}
	if fmt.Sprint(sizes) != "[1000 1000 500]" {
		t.Errorf("a purge came in %v", sizes)
	}
	list, err := admin.ListPolicies(t.Context(), &pb.ListPoliciesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	sizes = nil
	for {
		some, err := list.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(some.GetPolicies()))
	}
	if fmt.Sprint(sizes) != "[500 500 201]" {
		t.Errorf("policies came in %v", sizes)
	}
}
