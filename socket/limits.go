// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"
)

// Limits bounds what callers can make the agent do. A field that is zero has
// the default in its comment.
type Limits struct {
	Handshake   time.Duration // 5 s: to say who they are, and to begin with HTTP/2
	Pending     int           // 512: connections that have not said it, per socket
	Connections int           // 1,024: per socket
	Streams     uint32        // 64: requests at once on one connection
	Requests    int           // 256: requests at once per socket, with those whose message is still arriving

	Deadline    time.Duration // 10 s: of a request that came without one
	MaxDeadline time.Duration // 60 s: of a request
	MaxStream   time.Duration // 1 h: of a request with a stream of answers

	Idle  time.Duration // 5 min: after which a connection without requests is closed
	Age   time.Duration // 1 h: after which a connection takes no further requests
	Grace time.Duration // 15 min: and then has to finish those that it has

	Request      int // 2 MiB: bytes of one message to the workload socket
	AdminRequest int // 16 MiB: bytes of one message to the admin socket
}

// maxHeader bounds the headers of a request, in bytes.
const maxHeader = 16 << 10

// handlers are the goroutines of a socket that handle one request after another.
// Further requests at the same time get a goroutine each, whose stack has to grow
// anew: a sixth of the processor time of a Get.
const handlers = 32

// Flow control windows in bytes (RFC 9113, section 5.2). Fixed ones spare the
// pings by which gRPC would measure the link; a Unix socket needs no large ones.
const (
	streamWindow     = 256 << 10
	connectionWindow = 1 << 20
)

// Pings that gRPC exchanges on a quiet connection.
const (
	pingAfter   = time.Minute      // we ask a silent client whether it is there
	pingTimeout = 20 * time.Second // and wait this long
	minPing     = 30 * time.Second // a client that asks more often is disconnected
)

func (l Limits) withDefaults() Limits {
	orDefault(&l.Handshake, 5*time.Second)
	orDefault(&l.Pending, 512)
	orDefault(&l.Connections, 1024)
	orDefault(&l.Streams, 64)
	orDefault(&l.Requests, 256)
	orDefault(&l.Deadline, 10*time.Second)
	orDefault(&l.MaxDeadline, time.Minute)
	orDefault(&l.MaxStream, time.Hour)
	orDefault(&l.Idle, 5*time.Minute)
	orDefault(&l.Age, time.Hour)
	orDefault(&l.Grace, 15*time.Minute)
	orDefault(&l.Request, 2<<20)
	orDefault(&l.AdminRequest, 16<<20)
	return l
}

func orDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// options returns the limits that gRPC enforces.
func (l Limits) options(admin bool) []grpc.ServerOption {
	request := l.Request
	if admin {
		request = l.AdminRequest
	}
	return []grpc.ServerOption{
		grpc.ConnectionTimeout(l.Handshake),
		grpc.MaxConcurrentStreams(l.Streams),
		grpc.MaxRecvMsgSize(request),
		grpc.MaxHeaderListSize(maxHeader),
		grpc.StaticStreamWindowSize(streamWindow),
		grpc.StaticConnWindowSize(connectionWindow),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			MaxConnectionIdle:     l.Idle,
			MaxConnectionAge:      l.Age,
			MaxConnectionAgeGrace: l.Grace,
			Time:                  pingAfter,
			Timeout:               pingTimeout,
		}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{
			MinTime:             minPing,
			PermitWithoutStream: true,
		}),
	}
}
