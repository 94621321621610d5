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
// socket, with a server that answers what it was sent. It is both ends of it.
type Echo struct {
	*EchoClient
	server *EchoServer
}

// StartEcho serves at path and connects to it.
func StartEcho(path string, server, client *tls.Config) (*Echo, error) {
	s, err := ServeEcho(path, server)
	if err != nil {
		return nil, err
	}
	c, err := DialEcho(path, client)
	if err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return &Echo{EchoClient: c, server: s}, nil
}

// Close ends everything.
func (e *Echo) Close() error { return errors.Join(e.EchoClient.Close(), e.server.Close()) }

// EchoServer is the serving end of an echo.
type EchoServer struct {
	server *grpc.Server
	served chan error
}

// ServeEcho serves at path.
func ServeEcho(path string, config *tls.Config) (*EchoServer, error) {
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("serving the echo: %w", err)
	}
	config.NextProtos = []string{"h2"}
	e := &EchoServer{server: grpc.NewServer(grpc.Creds(credentials.NewTLS(config))), served: make(chan error, 1)}
	e.server.RegisterService(&grpc.ServiceDesc{
		ServiceName: "keyhole.test.Echo",
		HandlerType: (*any)(nil),
		Methods:     []grpc.MethodDesc{{MethodName: "Echo", Handler: answer}},
	}, e)
	go func() { e.served <- e.server.Serve(listener) }()
	return e, nil
}

func answer(_ any, _ context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	message := &wrapperspb.BytesValue{}
	return message, decode(message)
}

// Close ends the serving.
func (e *EchoServer) Close() error {
	e.server.Stop()
	return <-e.served
}

// EchoClient is the calling end of an echo.
type EchoClient struct{ conn *grpc.ClientConn }

// DialEcho connects, when it is first called, to the echo at path.
func DialEcho(path string, config *tls.Config) (*EchoClient, error) {
	conn, err := grpc.NewClient("unix:"+path, grpc.WithTransportCredentials(credentials.NewTLS(config)))
	if err != nil {
		return nil, fmt.Errorf("connecting to the echo: %w", err)
	}
	return &EchoClient{conn: conn}, nil
}

// Call sends payload and receives it.
func (e *EchoClient) Call(ctx context.Context, payload []byte) ([]byte, error) {
	received := &wrapperspb.BytesValue{}
	err := e.conn.Invoke(ctx, echoMethod, wrapperspb.Bytes(payload), received)
	return received.GetValue(), err
}

// Close ends the connection.
func (e *EchoClient) Close() error { return e.conn.Close() }
