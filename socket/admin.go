// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"google.golang.org/grpc"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// How much goes into one message of a stream: well below the 4 MiB that gRPC
// clients accept by default.
const (
	pathsPerMessage    = 1000
	policiesPerMessage = 500
)

// adminService translates between the wire, Administration and Statuses.
type adminService struct {
	pb.UnimplementedAdminServer
	door     Administration
	statuses Statuses
}

func (s adminService) Purge(request *pb.PurgeRequest, stream grpc.ServerStreamingServer[pb.PurgeResponse]) error {
	ctx := stream.Context()
	caller, err := callerOf(ctx)
	if err != nil {
		return err
	}
	which, err := purgeOf(request)
	if err != nil {
		return err
	}
	return s.door.Purge(ctx, caller, which, func(progress secret.PurgeProgress) error {
		paths := make([]string, 0, len(progress.Paths))
		for _, p := range progress.Paths {
			paths = append(paths, p.String())
		}
		if len(paths) == 0 {
			return stream.Send(&pb.PurgeResponse{Found: int64(progress.Found)})
		}
		for some := range slices.Chunk(paths, pathsPerMessage) {
			if err := stream.Send(&pb.PurgeResponse{Found: int64(progress.Found), Paths: some}); err != nil {
				return err
			}
		}
		return nil
	})
}

func purgeOf(request *pb.PurgeRequest) (secret.Purge, error) {
	if request.GetForce() == request.GetDryRun() {
		return secret.Purge{}, fmt.Errorf("%w purge: it needs exactly one of force and dry_run", secret.ErrInvalid)
	}
	prefix, err := wire.FolderPath(request.GetPrefix())
	if err != nil {
		return secret.Purge{}, err
	}
	which := secret.Purge{Prefix: prefix, DryRun: request.GetDryRun()}
	if age := request.GetOlderThan(); age != nil {
		if err := age.CheckValid(); err != nil {
			return secret.Purge{}, fmt.Errorf("%w age: %w", secret.ErrInvalid, err)
		}
		which.OlderThan = age.AsDuration()
	}
	if which.OlderThan < 0 {
		return secret.Purge{}, fmt.Errorf("%w age %s: it is negative", secret.ErrInvalid, which.OlderThan)
	}
	return which, nil
}

func (s adminService) ApplyPolicies(ctx context.Context, request *pb.ApplyPoliciesRequest) (*pb.ApplyPoliciesResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	policies := make([]policy.Policy, 0, len(request.GetPolicies()))
	for _, from := range request.GetPolicies() {
		p, err := wire.ToPolicy(from)
		if err != nil {
			return nil, err
		}
		policies = append(policies, p)
	}
	if err := s.door.ApplyPolicies(ctx, caller, policies); err != nil {
		return nil, err
	}
	return &pb.ApplyPoliciesResponse{}, nil
}

func (s adminService) ListPolicies(_ *pb.ListPoliciesRequest, stream grpc.ServerStreamingServer[pb.ListPoliciesResponse]) error {
	ctx := stream.Context()
	caller, err := callerOf(ctx)
	if err != nil {
		return err
	}
	policies, err := s.door.Policies(ctx, caller)
	if err != nil {
		return err
	}
	for some := range slices.Chunk(policies, policiesPerMessage) {
		answer := &pb.ListPoliciesResponse{Policies: make([]*pb.Policy, 0, len(some))}
		for _, p := range some {
			answer.Policies = append(answer.Policies, wire.FromPolicy(p))
		}
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
	return nil
}

func (s adminService) DeletePolicy(ctx context.Context, request *pb.DeletePolicyRequest) (*pb.DeletePolicyResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	if err := s.door.DeletePolicy(ctx, caller, request.GetName()); err != nil {
		if errors.Is(err, secret.ErrNotFound) {
			err = &told{error: err, reason: wire.PolicyNotFound}
		}
		return nil, err
	}
	return &pb.DeletePolicyResponse{}, nil
}

func (s adminService) Explain(ctx context.Context, request *pb.AdminExplainRequest) (*pb.AdminExplainResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	id, err := wire.ParseID(request.GetSpiffeId())
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
	explanation, err := s.door.Explain(ctx, caller, id, want, path)
	if err != nil {
		return nil, err
	}
	return &pb.AdminExplainResponse{Explanation: wire.FromExplanation(explanation)}, nil
}

func (s adminService) Status(ctx context.Context, _ *pb.StatusRequest) (*pb.StatusResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	found, err := s.statuses.Status(ctx, caller)
	if err != nil {
		return nil, err
	}
	answer := &pb.StatusResponse{
		Version:     found.Version,
		Pid:         int64(found.PID),
		Started:     wire.FromTime(found.Started),
		SpiffeId:    found.SPIFFEID,
		Development: found.Development,
	}
	for _, c := range found.Components {
		answer.Components = append(answer.Components, &pb.Component{Name: c.Name, Healthy: c.Healthy, Message: c.Message})
	}
	return answer, nil
}

func (s adminService) VerifyAudit(ctx context.Context, _ *pb.VerifyAuditRequest) (*pb.VerifyAuditResponse, error) {
	caller, err := callerOf(ctx)
	if err != nil {
		return nil, err
	}
	report, err := s.statuses.VerifyAudit(ctx, caller)
	if err != nil {
		return nil, err
	}
	return &pb.VerifyAuditResponse{
		Segments: int64(report.Segments), Records: report.Records,
		Problems: report.Problems, Omitted: int64(report.Omitted),
	}, nil
}
