// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/spiffe/go-spiffe/v2/spiffetls/tlsconfig"
	"github.com/spiffe/go-spiffe/v2/workloadapi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"github.com/keyhole-agent/keyhole/fuse/fusetest"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket/client"
	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"
	"github.com/keyhole-agent/keyhole/socket/sockettest"
)

// userPart is a workload: it calls, and opens files.
type userPart struct {
	source *workloadapi.X509Source
	conn   *grpc.ClientConn
	stub   pb.SecretsClient
	client *client.Client
	echo   *sockettest.EchoClient

	paths   []secret.Path
	payload []byte
	file    string
}

// Connection says whom to call, and about which secrets.
type Connection struct {
	Dir   string // of the agent
	Echo  bool   // there is one too
	Paths []string
}

// Connect prepares all ways to call. All connections use the SVID that the
// Workload API gives this process.
func (u *userPart) Connect(c Connection, _ *nothing) error {
	ctx := context.Background()
	u.payload = make([]byte, valueBytes)
	for _, text := range c.Paths {
		path, err := secret.ParsePath(text)
		if err != nil {
			return err
		}
		u.paths = append(u.paths, path)
	}
	var err error
	if u.source, err = workloadapi.NewX509Source(ctx, workloadapi.WithClientOptions(workloadapi.WithAddr(workloadAPI(c.Dir)))); err != nil {
		return err
	}
	tls := tlsconfig.MTLSClientConfig(u.source, u.source, tlsconfig.AuthorizeID(idOf("keyhole/agent")))
	u.conn, err = grpc.NewClient("unix:"+agentSocket(c.Dir), grpc.WithTransportCredentials(credentials.NewTLS(tls)))
	if err != nil {
		return err
	}
	u.stub = pb.NewSecretsClient(u.conn)
	if u.client, err = client.New(ctx, client.Config{Socket: agentSocket(c.Dir), WorkloadAPI: workloadAPI(c.Dir)}); err != nil {
		return err
	}
	if c.Echo {
		u.echo, err = sockettest.DialEcho(echoSocket(c.Dir), tls)
	}
	return err
}

// Open says which file OpenReadClose opens.
func (u *userPart) Open(path string, _ *nothing) error {
	u.file = path
	return nil
}

// Echo calls the echo.
func (u *userPart) Echo(w Work, reply *Done) (err error) {
	*reply, err = w.do(func(int) error {
		answer, err := u.echo.Call(context.Background(), u.payload)
		if err == nil && len(answer) != valueBytes {
			err = fmt.Errorf("the echo answered %d bytes", len(answer))
		}
		return err
	})
	return err
}

// Get calls Get with the generated client, on a connection like the echo's.
func (u *userPart) Get(w Work, reply *Done) (err error) {
	*reply, err = w.do(func(int) error {
		answer, err := u.stub.Get(context.Background(), &pb.GetRequest{Path: u.any().String()})
		if err == nil && len(answer.GetSecret().GetValues()["password"]) != valueBytes {
			err = errors.New("the agent answered something else")
		}
		return err
	})
	return err
}

// GetWithClient calls Get with package client.
func (u *userPart) GetWithClient(w Work, reply *Done) (err error) {
	*reply, err = w.do(func(int) error {
		found, err := u.client.Get(context.Background(), u.any(), 0)
		found.Values.Wipe()
		return err
	})
	return err
}

// any returns one of the secrets.
func (u *userPart) any() secret.Path { return u.paths[rand.IntN(len(u.paths))] }

// Put calls Put with the generated client. Each caller has secrets of its own.
func (u *userPart) Put(w Work, reply *Done) (err error) {
	*reply, err = w.do(func(caller int) error {
		_, err := u.stub.Put(context.Background(), &pb.PutRequest{
			Path: own(u.paths, caller, w.Callers).String(), Values: map[string][]byte{"password": u.payload},
		})
		return err
	})
	return err
}

// own returns one of the paths that no other caller writes.
func own(paths []secret.Path, caller, callers int) secret.Path {
	share := len(paths) / callers
	return paths[caller*share+rand.IntN(share)]
}

// OpenReadClose opens, reads and closes the file, with a system call each.
func (u *userPart) OpenReadClose(w Work, reply *Done) (err error) {
	buffers := make([][]byte, w.Callers)
	for i := range buffers {
		buffers[i] = make([]byte, 2*valueBytes)
	}
	*reply, err = w.do(func(caller int) error { return fusetest.OpenReadClose(u.file, buffers[caller], 1) })
	return err
}

func (u *userPart) close() error {
	var errs []error
	if u.echo != nil {
		errs = append(errs, u.echo.Close())
	}
	if u.client != nil {
		errs = append(errs, u.client.Close())
	}
	if u.conn != nil {
		errs = append(errs, u.conn.Close())
	}
	if u.source != nil {
		errs = append(errs, u.source.Close())
	}
	return errors.Join(errs...)
}
