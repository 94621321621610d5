// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"
	"iter"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/wire"

	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
)

// Get returns one version of a secret, the current one for 0. The Info of the
// result has neither Keys nor Versions. The caller wipes the values.
func (c *Client) Get(ctx context.Context, path secret.Path, version secret.Version) (secret.Secret, error) {
	doing := fmt.Sprintf("getting %s", path)
	answer, err := c.secrets.Get(ctx, &pb.GetRequest{Path: path.String(), Version: uint64(version)})
	if err != nil {
		return secret.Secret{}, c.workload.failed(doing, err)
	}
	defer answer.Wipe()
	found, err := wire.ToSecret(answer.GetSecret())
	return found, misunderstood(doing, err)
}

// List yields what lies in a folder, and what the caller may list of it: the
// first level, or, when recursive, all secrets at any depth and no folders. The
// root is the zero Path. It stops at the first error.
func (c *Client) List(ctx context.Context, folder secret.Path, recursive bool) iter.Seq2[secret.Entry, error] {
	return func(yield func(secret.Entry, error) bool) {
		doing := fmt.Sprintf("listing %q", folder)
		request := &pb.ListRequest{Prefix: folder.String(), Recursive: recursive}
		for {
			page, err := c.secrets.List(ctx, request)
			if err != nil {
				yield(secret.Entry{}, c.workload.failed(doing, err))
				return
			}
			for _, from := range page.GetEntries() {
				entry, err := wire.ToEntry(from)
				if !yield(entry, misunderstood(doing, err)) || err != nil {
					return
				}
			}
			if request.PageToken = page.GetNextPageToken(); request.PageToken == "" {
				return
			}
		}
	}
}

// Put writes the next version of a secret and makes it current. It describes
// the secret as it is then. The values stay the caller's to wipe.
func (c *Client) Put(ctx context.Context, path secret.Path, values secret.Values) (secret.Info, error) {
	doing := fmt.Sprintf("putting %s", path)
	answer, err := c.secrets.Put(ctx, &pb.PutRequest{Path: path.String(), Values: wire.FromValues(values)})
	if err != nil {
		return secret.Info{}, c.workload.failed(doing, err)
	}
	info, err := wire.ToInfo(answer.GetInfo())
	return info, misunderstood(doing, err)
}

// Delete stops serving the selected versions of a secret.
func (c *Client) Delete(ctx context.Context, path secret.Path, which secret.Selection) (secret.Info, error) {
	doing := fmt.Sprintf("deleting %s", path)
	request := &pb.DeleteRequest{Path: path.String(), AllVersions: which.All}
	for _, v := range which.Versions {
		request.Versions = append(request.Versions, uint64(v))
	}
	answer, err := c.secrets.Delete(ctx, request)
	if err != nil {
		return secret.Info{}, c.workload.failed(doing, err)
	}
	info, err := wire.ToInfo(answer.GetInfo())
	return info, misunderstood(doing, err)
}

// Describe returns everything about a secret but its values.
func (c *Client) Describe(ctx context.Context, path secret.Path) (secret.Info, error) {
	doing := fmt.Sprintf("describing %s", path)
	answer, err := c.secrets.Describe(ctx, &pb.DescribeRequest{Path: path.String()})
	if err != nil {
		return secret.Info{}, c.workload.failed(doing, err)
	}
	info, err := wire.ToInfo(answer.GetInfo())
	return info, misunderstood(doing, err)
}

// Explain tells what decides whether this program is allowed something, for
// each SPIFFE ID that it has: one that allows is enough.
func (c *Client) Explain(ctx context.Context, want policy.Permission, path secret.Path) ([]policy.Explanation, error) {
	doing := fmt.Sprintf("explaining %s on %s", want, path)
	answer, err := c.secrets.Explain(ctx, &pb.ExplainRequest{Permission: wire.FromPermission(want), Path: path.String()})
	if err != nil {
		return nil, c.workload.failed(doing, err)
	}
	var explanations []policy.Explanation
	for _, from := range answer.GetExplanations() {
		explanation, err := wire.ToExplanation(from)
		if err != nil {
			return nil, misunderstood(doing, err)
		}
		explanations = append(explanations, explanation)
	}
	return explanations, nil
}

// misunderstood is an answer that breaks the rules of the interface: that is a
// fault of one side, and none of the errors of package secret.
func misunderstood(doing string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: the agent's answer makes no sense: %v", doing, err) //nolint:errorlint // what was sent is not invalid
}
