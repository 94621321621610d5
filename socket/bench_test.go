// SPDX-License-Identifier: Apache-2.0

package socket_test

import (
	"bytes"
	"context"
	"fmt"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/identity/devdomain"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/sockettest"
)

// BenchmarkGet compares Get of 1 KiB, over mTLS on a kept connection, with a
// bare gRPC echo of the same size on the same kind of connection. "stub" is the
// generated client, "client" is package client.
func BenchmarkGet(b *testing.B) {
	payload := bytes.Repeat([]byte{7}, 1024)
	f := start(b, nil)
	f.door.Forgetful = true
	values, err := secret.NewValues(map[string][]byte{"password": payload})
	if err != nil {
		b.Fatal(err)
	}
	if _, err := f.door.Put(b.Context(), identity.Caller{IDs: f.ids()}, dbCreds, values); err != nil {
		b.Fatal(err)
	}
	clientTLS := f.certs.ClientTLS(f.issue(b, devdomain.Leaf{ID: web}))
	echo, err := sockettest.StartEcho(filepath.Join(filepath.Dir(f.path), "echo"), f.certs.ServerTLS(), clientTLS)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { check(b, echo.Close()) })
	stub := pb.NewSecretsClient(f.asWeb(b, f.path))
	c, err := client.New(b.Context(), client.Config{Socket: f.path, WorkloadAPI: f.domain.WorkloadAddress()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { check(b, c.Close()) })

	calls := []struct {
		name string
		call func(ctx context.Context) error
	}{
		{"echo", func(ctx context.Context) error {
			_, err := echo.Call(ctx, payload)
			return err
		}},
		{"stub", func(ctx context.Context) error {
			_, err := stub.Get(ctx, &pb.GetRequest{Path: "db/creds"})
			return err
		}},
		{"client", func(ctx context.Context) error {
			found, err := c.Get(ctx, dbCreds, 0)
			found.Values.Wipe()
			return err
		}},
	}
	for _, callers := range []int{1, 32} {
		for _, c := range calls {
			b.Run(fmt.Sprintf("%s/callers=%d", c.name, callers), func(b *testing.B) {
				measure(b, callers, c.call)
			})
		}
	}
}

// measure calls from as many goroutines at once.
func measure(b *testing.B, callers int, call func(ctx context.Context) error) {
	b.ReportAllocs()
	if callers == 1 {
		for b.Loop() {
			if err := call(b.Context()); err != nil {
				b.Fatal(err)
			}
		}
		return
	}
	b.SetParallelism(max(callers/runtime.GOMAXPROCS(0), 1))
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			if err := call(b.Context()); err != nil {
				b.Error(err)
				return
			}
		}
	})
}
