// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/protobuf/types/known/durationpb"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// Purge destroys the empty secrets that which selects, unless it is a dry run,
// and yields what was done in steps. The first step comes before anything is
// destroyed and tells how many were found. It stops at the first error; what
// was reported until then is done. Leaving the loop stops the purge.
func (c *Client) Purge(ctx context.Context, which secret.Purge) iter.Seq2[secret.PurgeProgress, error] {
	return func(yield func(secret.PurgeProgress, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		request := &pb.PurgeRequest{Prefix: which.Prefix.String(), DryRun: which.DryRun, Force: !which.DryRun}
		if which.OlderThan != 0 {
			request.OlderThan = durationpb.New(which.OlderThan)
		}
		stream, err := c.manage.Purge(ctx, request)
		for err == nil {
			var step *pb.PurgeResponse
			if step, err = stream.Recv(); err != nil {
				break
			}
			progress, err := toProgress(step)
			if !yield(progress, misunderstood("purging", err)) || err != nil {
				return
			}
		}
		if !errors.Is(err, io.EOF) {
			yield(secret.PurgeProgress{}, c.admin.failed("purging", err))
		}
	}
}

func toProgress(step *pb.PurgeResponse) (secret.PurgeProgress, error) {
	progress := secret.PurgeProgress{Found: int(step.GetFound())}
	for _, text := range step.GetPaths() {
		path, err := secret.ParsePath(text)
		if err != nil {
			return secret.PurgeProgress{}, err
		}
		progress.Paths = append(progress.Paths, path)
	}
	return progress, nil
}

// ApplyPolicies creates or replaces policies by name, all or none.
func (c *Client) ApplyPolicies(ctx context.Context, policies []policy.Policy) error {
	request := &pb.ApplyPoliciesRequest{}
	for _, p := range policies {
		request.Policies = append(request.Policies, wire.FromPolicy(p))
	}
	if _, err := c.manage.ApplyPolicies(ctx, request); err != nil {
		return c.admin.failed("applying policies", err)
	}
	return nil
}

// Policies returns all policies.
func (c *Client) Policies(ctx context.Context) ([]policy.Policy, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.manage.ListPolicies(ctx, &pb.ListPoliciesRequest{})
	var policies []policy.Policy
	for err == nil {
		var some *pb.ListPoliciesResponse
		if some, err = stream.Recv(); err != nil {
			break
		}
		for _, from := range some.GetPolicies() {
			p, err := wire.ToPolicy(from)
			if err != nil {
				return nil, misunderstood("listing policies", err)
			}
			policies = append(policies, p)
		}
	}
	if !errors.Is(err, io.EOF) {
		return nil, c.admin.failed("listing policies", err)
	}
	return policies, nil
}

// DeletePolicy deletes a policy by name.
func (c *Client) DeletePolicy(ctx context.Context, name string) error {
	if _, err := c.manage.DeletePolicy(ctx, &pb.DeletePolicyRequest{Name: name}); err != nil {
		return c.admin.failed(fmt.Sprintf("deleting the policy %q", name), err)
	}
	return nil
}

// ExplainAs tells what decides whether id is allowed something.
func (c *Client) ExplainAs(ctx context.Context, id spiffeid.ID, want policy.Permission, path secret.Path) (policy.Explanation, error) {
	doing := fmt.Sprintf("explaining %s on %s for %s", want, path, id)
	answer, err := c.manage.Explain(ctx, &pb.AdminExplainRequest{
		SpiffeId: id.String(), Permission: wire.FromPermission(want), Path: path.String(),
	})
	if err != nil {
		return policy.Explanation{}, c.admin.failed(doing, err)
	}
	explanation, err := wire.ToExplanation(answer.GetExplanation())
	return explanation, misunderstood(doing, err)
}

// Status is how the agent is.
type Status struct {
	Version     string
	PID         int
	Started     time.Time
	SPIFFEID    string // the agent's own; "" until it has one
	Development bool
	Components  []Component
}

// Component is one part of the agent and how it is.
type Component struct {
	Name    string // stable: "store", "audit", "identity", "broker", "mount", "socket"
	Healthy bool
	Message string // what is wrong and what to do, or what it serves
}

// Status tells how the agent is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	answer, err := c.manage.Status(ctx, &pb.StatusRequest{})
	if err != nil {
		return Status{}, c.admin.failed("asking for the agent's status", err)
	}
	found := Status{
		Version:     answer.GetVersion(),
		PID:         int(answer.GetPid()),
		Started:     wire.ToTime(answer.GetStarted()),
		SPIFFEID:    answer.GetSpiffeId(),
		Development: answer.GetDevelopment(),
	}
	for _, from := range answer.GetComponents() {
		found.Components = append(found.Components, Component{
			Name: from.GetName(), Healthy: from.GetHealthy(), Message: from.GetMessage(),
		})
	}
	return found, nil
}

// AuditReport is what a check of the audit log found.
type AuditReport struct {
	Segments int
	Records  uint64
	Problems []string // what is not as it was written, and where
	Omitted  int      // how many more problems there are
}

// VerifyAudit makes the agent check every record of its audit log. A log with
// problems is no error.
func (c *Client) VerifyAudit(ctx context.Context) (AuditReport, error) {
	report, err := c.manage.VerifyAudit(ctx, &pb.VerifyAuditRequest{})
	if err != nil {
		return AuditReport{}, c.admin.failed("checking the audit log", err)
	}
	return AuditReport{
		Segments: int(report.GetSegments()), Records: report.GetRecords(),
		Problems: report.GetProblems(), Omitted: int(report.GetOmitted()),
	}, nil
}
