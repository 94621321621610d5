// SPDX-License-Identifier: Apache-2.0

package wire

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

func TestPooledBuffersComeBackClear(t *testing.T) {
	pool := &Pool{}
	for _, length := range []int{0, 1, 100, 2047, 2048, 2049, 5000, 1 << 20, 1 << 21, 1<<21 + 1} {
		for range 3 {
			buffer := pool.Get(length)
			if len(*buffer) != length || len(bytes.Trim((*buffer)[:cap(*buffer)], "\x00")) != 0 {
				t.Fatalf("a buffer of %d bytes, asked for %d, or not clear", len(*buffer), length)
			}
			whole := (*buffer)[:cap(*buffer)]
			for i := range whole {
				whole[i] = 7
			}
			*buffer = (*buffer)[:length/2]
			pool.Put(buffer)
			if len(bytes.Trim(whole, "\x00")) != 0 {
				t.Fatalf("a buffer of %d bytes kept what was in it", length)
			}
		}
	}
}

func TestMessagesAreSmallestPooledBuffersToo(t *testing.T) {
	pool := &Pool{}
	data, err := Codec{Pool: pool}.Marshal(&pb.GetRequest{Path: "db/creds"})
	if err != nil {
		t.Fatal(err)
	}
	encoded := data[0].ReadOnlyData()
	if len(encoded) == 0 {
		t.Fatal("nothing was encoded")
	}
	data.Free()
	if len(bytes.Trim(encoded, "\x00")) != 0 {
		t.Error("a small message stays in memory after it was sent")
	}
}

func TestTheCodecIsProtobufs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		values := rapid.MapOfN(rapid.StringMatching("[a-z]{1,9}"), rapid.SliceOfN(rapid.Byte(), 0, 3000), 0, 4).Draw(t, "values")
		message := &pb.PutRequest{Path: "a/b", Values: values}
		codec := Codec{Pool: &Pool{}}
		data, err := codec.Marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		whole := bytes.Clone(data[0].ReadOnlyData())
		data.Free()
		theirs := &pb.PutRequest{}
		if err := proto.Unmarshal(whole, theirs); err != nil || !proto.Equal(message, theirs) {
			t.Fatalf("protobuf reads %v: %v", theirs, err)
		}
		// In as many pieces as the transport likes.
		at := rapid.IntRange(0, len(whole)).Draw(t, "at")
		pieces := mem.BufferSlice{mem.SliceBuffer(whole[:at]), mem.SliceBuffer(whole[at:])}
		ours := &pb.PutRequest{}
		if err := codec.Unmarshal(pieces, ours); err != nil || !proto.Equal(message, ours) {
			t.Fatalf("in pieces it is %v: %v", ours, err)
		}
	})
}

func TestOnlyAServersAnswersAreWiped(t *testing.T) {
	for _, wipe := range []bool{false, true} {
		value := []byte("hunter2")
		answer := &pb.GetResponse{Secret: &pb.Secret{Values: map[string][]byte{"password": value}}}
		data, err := Codec{Pool: &Pool{}, WipeSent: wipe}.Marshal(answer)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(data[0].ReadOnlyData(), []byte("hunter2")) {
			t.Error("the value was not sent")
		}
		if wiped := value[0] == 0; wiped != wipe {
			t.Errorf("WipeSent is %t and the value is %q", wipe, value)
		}
	}
}

func TestTheCodecRefusesWhatIsNoMessage(t *testing.T) {
	codec := Codec{Pool: &Pool{}}
	if _, err := codec.Marshal(7); err == nil {
		t.Error("encoded")
	}
	if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer("x")}, 7); err == nil {
		t.Error("decoded")
	}
}

func TestEachReasonComesBackAsItsError(t *testing.T) {
	seen := map[Reason]bool{}
	for _, row := range Failures() {
		if seen[row.Reason] {
			t.Errorf("%s is there twice", row.Reason)
		}
		seen[row.Reason] = true
		if back := FailureFor(row.Reason, codes.Unknown); back != row {
			t.Errorf("%s came back as %+v", row.Reason, back)
		}
		if row.Err == nil || row.Reason == PolicyNotFound {
			continue
		}
		if there := FailureOf(fmt.Errorf("doing something: %w", row.Err)); there != row {
			t.Errorf("%v leaves as %+v", row.Err, there)
		}
	}
	if f := FailureOf(errors.New("anything")); f.Reason != Internal {
		t.Errorf("an unknown error leaves as %+v", f)
	}
}

func TestErrorsThatGRPCMakesItselfHaveTheirSense(t *testing.T) {
	for code, want := range map[codes.Code]error{
		codes.Unavailable:        secret.ErrUnavailable,
		codes.ResourceExhausted:  secret.ErrTooLarge,
		codes.Unauthenticated:    secret.ErrUnauthenticated,
		codes.PermissionDenied:   secret.ErrDenied,
		codes.InvalidArgument:    secret.ErrInvalid,
		codes.Unimplemented:      errors.ErrUnsupported,
		codes.FailedPrecondition: nil,
		codes.Unknown:            nil,
		codes.Internal:           nil,
	} {
		if got := FailureFor("", code).Err; got != want { //nolint:errorlint // the very sentinel
			t.Errorf("%s is %v, want %v", code, got, want)
		}
		if got := FailureFor("OF_THE_FUTURE", code).Err; got != want { //nolint:errorlint // likewise
			t.Errorf("%s with an unknown reason is %v, want %v", code, got, want)
		}
	}
}

func TestEverythingRoundTrips(t *testing.T) {
	now := time.Date(2026, 5, 4, 3, 2, 1, 7, time.UTC)
	key, err := secret.ParseKey("password")
	if err != nil {
		t.Fatal(err)
	}
	info := secret.Info{
		Path: secret.MustParsePath("db/creds"), ID: secret.ID{1, 2, 3}, Revision: 9, Created: now, Updated: now.Add(1),
		Current: 3, Oldest: 1, Latest: 4, EmptyAt: now.Add(2), Keys: []secret.KeySize{{Key: key, Size: 7}},
		Versions: []secret.VersionInfo{
			{Version: 3, State: secret.Live, Created: now, Size: 7, Writer: "spiffe://a/b"},
			{Version: 4, State: secret.Deleted, Created: now, DeletedAt: now.Add(3)},
			{Version: 1, State: secret.Destroyed},
		},
	}
	back, err := ToInfo(FromInfo(info))
	if err != nil || !reflect.DeepEqual(back, info) {
		t.Errorf("%+v came back as %+v: %v", info, back, err)
	}
	id := spiffeid.RequireFromString("spiffe://dev.keyhole.test/web")
	for permission := policy.List; permission <= policy.Super; permission++ {
		e := policy.Explanation{
			SPIFFEID: id, Permission: permission, Path: info.Path,
			Decision:   policy.Decision{Allowed: true, Policy: "p", ID: id},
			Considered: []policy.Considered{{Policy: "p", Reason: "because"}}, Omitted: 2,
		}
		if back, err := ToExplanation(FromExplanation(e)); err != nil || !reflect.DeepEqual(back, e) {
			t.Errorf("%+v came back as %+v: %v", e, back, err)
		}
		p := policy.Policy{Name: "p", SPIFFEID: "spiffe://a/*", Path: "db/**", Permissions: []policy.Permission{permission}}
		if back, err := ToPolicy(FromPolicy(p)); err != nil || !reflect.DeepEqual(back, p) {
			t.Errorf("%+v came back as %+v: %v", p, back, err)
		}
	}
	if _, err := ToPermission(FromPermission(0)); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("no permission: %v", err)
	}
}

func TestASecretSharesItsBytesAndLeavesTheHistoryOut(t *testing.T) {
	values, err := secret.NewValues(map[string][]byte{"password": []byte("hunter2"), "user": []byte("app")})
	if err != nil {
		t.Fatal(err)
	}
	s := secret.Secret{
		Info: secret.Info{
			Path: secret.MustParsePath("a"), Keys: values.Sizes(), Versions: make([]secret.VersionInfo, 60),
		},
		Version: secret.VersionInfo{Version: 2}, Values: values,
	}
	wire := FromSecret(s)
	if len(wire.GetInfo().GetVersions()) != 0 || len(wire.GetInfo().GetKeys()) != 0 || len(s.Info.Versions) != 60 {
		t.Error("the history was sent, or taken from the original")
	}
	back, err := ToSecret(wire)
	if err != nil {
		t.Fatal(err)
	}
	for key, value := range values.All() {
		if got, _ := back.Values.Get(key); !bytes.Equal(got, value) {
			t.Errorf("%s came back as %q", key, got)
		}
	}
	(&pb.GetResponse{Secret: wire}).Wipe()
	for key, value := range values.All() {
		if len(bytes.Trim(value, "\x00")) != 0 {
			t.Errorf("%s was not cleared with the message", key)
		}
	}
	for key, value := range back.Values.All() {
		if len(bytes.Trim(value, "\x00")) == 0 {
			t.Errorf("%s is not a copy", key)
		}
	}
}

func TestMalformedAnswersAreRefused(t *testing.T) {
	good := func() *pb.SecretInfo { return &pb.SecretInfo{Path: "a", Id: make([]byte, 16)} }
	if _, err := ToInfo(good()); err != nil {
		t.Fatal(err)
	}
	for name, spoil := range map[string]func(*pb.SecretInfo){
		"no path":     func(i *pb.SecretInfo) { i.Path = "" },
		"a short ID":  func(i *pb.SecretInfo) { i.Id = i.GetId()[1:] },
		"a long ID":   func(i *pb.SecretInfo) { i.Id = make([]byte, 17) },
		"a bad key":   func(i *pb.SecretInfo) { i.Keys = []*pb.KeyInfo{{Key: "a/b"}} },
		"a key of ..": func(i *pb.SecretInfo) { i.Keys = []*pb.KeyInfo{{Key: ".."}} },
	} {
		info := good()
		spoil(info)
		if _, err := ToInfo(info); !errors.Is(err, secret.ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, err := ToInfo(nil); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("nothing: %v", err)
	}
	if _, err := ToSecret(nil); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("no secret: %v", err)
	}
	if _, err := ToExplanation(nil); !errors.Is(err, secret.ErrInvalid) {
		t.Errorf("no explanation: %v", err)
	}
}
