// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"encoding/base64"
	"fmt"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/secret"
)

// The sizes of a page of a listing. The largest page fits into the 4 MiB that
// gRPC clients accept by default.
const (
	defaultPage = 1000
	maxPage     = 5000
)

// secretsService translates between the wire and Secrets.
type secretsService struct {
	pb.UnimplementedSecretsServer
	door Secrets
}

// Get leaves the wiping of the values to the codec, which does it once the
// answer, whose bytes are theirs, is encoded.
func (s secretsService) Get(ctx context.Context, request *pb.GetRequest) (*pb.GetResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	path, err := secret.ParsePath(request.GetPath())
	if err != nil {
		return nil, err
	}
	found, err := s.door.Get(ctx, caller, path, secret.Version(request.GetVersion()))
	if err != nil {
		return nil, err
	}
	return &pb.GetResponse{Secret: wire.FromSecret(found)}, nil
}

func (s secretsService) List(ctx context.Context, request *pb.ListRequest) (*pb.ListResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	prefix, err := wire.FolderPath(request.GetPrefix())
	if err != nil {
		return nil, err
	}
	after, err := decodePageToken(prefix, request.GetPageToken())
	if err != nil {
		return nil, err
	}
	size := int(request.GetPageSize())
	switch {
	case size < 0:
		return nil, fmt.Errorf("%w page size %d: it is negative", secret.ErrInvalid, size)
	case size == 0:
		size = defaultPage
	}
	entries, more, err := s.door.List(ctx, caller, prefix, after, min(size, maxPage), request.GetRecursive())
	if err != nil {
		return nil, err
	}
	answer := &pb.ListResponse{Entries: make([]*pb.Entry, 0, len(entries))}
	for _, e := range entries {
		answer.Entries = append(answer.Entries, wire.FromEntry(e))
	}
	if more && len(entries) > 0 {
		answer.NextPageToken = encodePageToken(entries[len(entries)-1].Path)
	}
	return answer, nil
}

// A page token is the last path of the page before, in base64, so that nobody
// is tempted to make one.
func encodePageToken(last secret.Path) string {
	return base64.RawURLEncoding.EncodeToString([]byte(last.String()))
}

// decodePageToken returns the root for "". The error is secret.ErrInvalid, also
// for a token of another folder.
func decodePageToken(prefix secret.Path, token string) (secret.Path, error) {
	if token == "" {
		return secret.Path{}, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(token)
	if err != nil {
		return secret.Path{}, fmt.Errorf("%w page token: %w", secret.ErrInvalid, err)
	}
	last, err := secret.ParsePath(string(text))
	if err != nil {
		return secret.Path{}, fmt.Errorf("page token: %w", err)
	}
	if last != prefix && !prefix.Contains(last) {
		return secret.Path{}, fmt.Errorf("%w page token: it is of another folder", secret.ErrInvalid)
	}
	return last, nil
}

// Put wipes the copy of the values that it makes; the interceptor wipes those
// of the request.
func (s secretsService) Put(ctx context.Context, request *pb.PutRequest) (*pb.PutResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	path, err := secret.ParsePath(request.GetPath())
	if err != nil {
		return nil, err
	}
	values, err := secret.NewValues(request.GetValues())
	if err != nil {
		return nil, err
	}
	defer values.Wipe()
	info, err := s.door.Put(ctx, caller, path, values)
	if err != nil {
		return nil, err
	}
	return &pb.PutResponse{Info: wire.FromInfo(info)}, nil
}

func (s secretsService) Delete(ctx context.Context, request *pb.DeleteRequest) (*pb.DeleteResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	path, err := secret.ParsePath(request.GetPath())
	if err != nil {
		return nil, err
	}
	which := secret.Selection{All: request.GetAllVersions()}
	for _, v := range request.GetVersions() {
		if v == 0 {
			return nil, fmt.Errorf("%w version 0: versions begin at 1; name none for the current one", secret.ErrInvalid)
		}
		which.Versions = append(which.Versions, secret.Version(v))
	}
	if which.All && len(which.Versions) > 0 {
		return nil, fmt.Errorf("%w selection: either all versions or some", secret.ErrInvalid)
	}
	info, err := s.door.Delete(ctx, caller, path, which)
	if err != nil {
		return nil, err
	}
	return &pb.DeleteResponse{Info: wire.FromInfo(info)}, nil
}

func (s secretsService) Describe(ctx context.Context, request *pb.DescribeRequest) (*pb.DescribeResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	path, err := secret.ParsePath(request.GetPath())
	if err != nil {
		return nil, err
	}
	info, err := s.door.Describe(ctx, caller, path)
	if err != nil {
		return nil, err
	}
	return &pb.DescribeResponse{Info: wire.FromInfo(info)}, nil
}

func (s secretsService) Explain(ctx context.Context, request *pb.ExplainRequest) (*pb.ExplainResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	want, err := wire.ToPermission(request.GetPermission())
	if err != nil {
		return nil, err
	}
	path, err := secret.ParsePath(request.GetPath())
	if err != nil {
		return nil, err
	}
	explanations, err := s.door.ExplainSelf(ctx, caller, want, path)
	if err != nil {
		return nil, err
	}
	answer := &pb.ExplainResponse{}
	for _, e := range explanations {
		answer.Explanations = append(answer.Explanations, wire.FromExplanation(e))
	}
	return answer, nil
}
