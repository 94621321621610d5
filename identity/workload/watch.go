// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"errors"
	"time"

	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
)

// The pauses between two attempts to reach the Workload API. gRPC's own default
// would grow to two minutes, which is too long for a daemon on the same host.
const (
	firstPause = 100 * time.Millisecond
	lastPause  = 5 * time.Second
)

func clientOptions(address string) []workloadapi.ClientOption {
	connect := grpc.ConnectParams{
		Backoff:           backoff.Config{BaseDelay: firstPause, Multiplier: 2, Jitter: 0.2, MaxDelay: lastPause},
		MinConnectTimeout: lastPause,
	}
	return []workloadapi.ClientOption{
		workloadapi.WithAddr(address),
		workloadapi.WithDialOptions(grpc.WithConnectParams(connect)),
		workloadapi.WithBackoffStrategy(pauses{}),
	}
}

// follow watches until ctx ends. go-spiffe gives up when the server answers
// Canceled or InvalidArgument; a restarted server may do better.
func (s *Source) follow(ctx context.Context) {
	pause := doubling{}
	for {
		err := s.client.WatchX509Context(ctx, watcher{s})
		if ctx.Err() != nil {
			return
		}
		s.fail(err)
		again := time.NewTimer(pause.Next())
		select {
		case <-again.C:
		case <-ctx.Done():
			again.Stop()
			return
		}
	}
}

// watcher keeps go-spiffe's callbacks out of Source's methods.
type watcher struct{ source *Source }

func (w watcher) OnX509ContextUpdate(received *workloadapi.X509Context) { w.source.update(received) }

func (w watcher) OnX509ContextWatchError(err error) {
	if err == nil {
		err = errors.New("the stream ended")
	}
	w.source.fail(err)
}

// pauses is the back-off between two streams: doubling, from firstPause to
// lastPause.
type pauses struct{}

func (pauses) NewBackoff() workloadapi.Backoff { return &doubling{} }

type doubling struct{ next time.Duration }

func (d *doubling) Next() time.Duration {
	pause := max(d.next, firstPause)
	d.next = min(2*pause, lastPause)
	return pause
}

func (d *doubling) Reset() { d.next = 0 }
