// SPDX-License-Identifier: Apache-2.0

package sockettest

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// echoMethod is the only one of the echo.
const echoMethod = "/keyhole.test.Echo/Echo"

// Echo is the floor under every call: gRPC as it comes, over mTLS on a Unix
// socket, with a server that answers what it was sent.
type Echo struct {
	server *grpc.Server
	served chan error
	conn   *grpc.ClientConn
}

// StartEcho serves at path and connects to it.
func StartEcho(path string, server, client *tls.Config) (*Echo, error) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("serving the echo: %w", err)
	}
	server.NextProtos = []string{"h2"}
	e := &Echo{server: grpc.NewServer(grpc.Creds(credentials.NewTLS(server))), served: make(chan error, 1)}
	e.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "keyhole.test.Echo",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: answer}},
	}, e)
	e.conn, err = grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(credentials.NewTLS(client)))
	if err != nil {
		_ = listener.Close()
		return nil, fmt.Errorf("connecting to the echo: %w", err)
	}
	go func() { e.served <- e.server.Serve(listener) }()
	return e, nil
}

func answer(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	message := &wrapperspb.BytesValue{}
	return message, decode(message)
}

// Call sends payload and receives it.
func (e *Echo) Call(ctx context.Context, payload []byte) ([]byte, error) {
	received := &wrapperspb.BytesValue{}
	err := e.conn.Invoke(ctx, echoMethod, wrapperspb.Bytes(payload), received)
	return received.GetValue(), err
}

// Close ends everything.
func (e *Echo) Close() error {
	err := e.conn.Close()
	e.server.Stop()
	return errors.Join(err, <-e.served)
}
