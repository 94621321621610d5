// SPDX-License-Identifier: Apache-2.0

package socket

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"

	pb "github.com/keyhole-agent/keyhole/socket/keyholepb"

	"github.com/keyhole-agent/keyhole/secret"
)

// The modes of the sockets. Who may connect is no statement about who may do
// what: that is for the policies.
const (
	workloadMode fs.FileMode = 0o666
	adminMode    fs.FileMode = 0o600
)

// Certificates is the agent's side of mTLS. Its methods are called
// concurrently.
type Certificates interface {
	// ServerTLS returns a configuration with the agent's current SVID for the
	// next handshake. The caller owns it. Without an SVID, the handshake fails
	// with secret.ErrUnavailable.
	ServerTLS() *tls.Config

	// Verify returns whose SVID chain is, leaf first, by the current bundles and
	// the current time. It is called for every request, so it remembers.
	//
	// Errors: secret.ErrUnauthenticated, and secret.ErrUnavailable when that
	// cannot be told now.
	Verify(chain []*x509.Certificate) (spiffeid.ID, error)
}

// Config says what to serve, where, and to whom.
type Config struct {
	Path      string // of the workload socket; "" for none
	AdminPath string // of the admin socket; "" for none

	Secrets        Secrets        // required with Path
	Administration Administration // required with AdminPath
	Statuses       Statuses       // required with AdminPath
	Refusals       Refusals       // required

	Certificates Certificates // nil: nobody who offers a credential is served
	Peers        Peers        // nil: nobody who offers none is served

	Limits Limits
	Logger *slog.Logger // nil discards
}

// Server serves both sockets.
type Server struct {
	surfaces []*surface
	health   *health.Server

	mu      sync.Mutex
	state   state
	serving sync.WaitGroup // Serve calls
}

type state uint8

const (
	made state = iota
	served
	closed
)

// New makes the sockets and listens on them; connections wait for Serve.
//
// Errors: secret.ErrInvalid for an incomplete Config or an unsuitable path,
// secret.ErrInUse with a pid when another process serves a socket.
func New(config Config) (*Server, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	if config.Logger == nil {
		config.Logger = slog.New(slog.DiscardHandler)
	}
	config.Limits = config.Limits.withDefaults()
	s := &Server{health: health.NewServer()}
	s.SetServing(false)
	if config.Path != "" {
		if err := s.add(config, config.Path, workloadMode); err != nil {
			return nil, err
		}
		pb.RegisterSecretsServer(s.surfaces[0].grpc, secretsService{door: config.Secrets})
	}
	if config.AdminPath != "" {
		if err := s.add(config, config.AdminPath, adminMode); err != nil {
			return nil, errors.Join(err, s.Close(context.Background()))
		}
		pb.RegisterAdminServer(s.surfaces[len(s.surfaces)-1].grpc, adminService{door: config.Administration, statuses: config.Statuses})
	}
	return s, nil
}

func (c Config) check() error {
	switch {
	case c.Path == "" && c.AdminPath == "":
		return fmt.Errorf("%w socket configuration: no path", secret.ErrInvalid)
	case c.Path == c.AdminPath:
		return fmt.Errorf("%w socket configuration: both sockets have the path %s", secret.ErrInvalid, c.Path)
	case c.Path != "" && c.Secrets == nil, c.AdminPath != "" && (c.Administration == nil || c.Statuses == nil), c.Refusals == nil:
		return fmt.Errorf("%w socket configuration: a door is missing", secret.ErrInvalid)
	}
	return nil
}

func (s *Server) add(config Config, path string, mode fs.FileMode) error {
	listener, made, err := listen(path, mode)
	if err != nil {
		return err
	}
	s.surfaces = append(s.surfaces, newSurface(config, listener, made, mode == adminMode, s.health))
	return nil
}

// SetServing sets what health says: SERVING or NOT_SERVING, for the whole agent
// and for both services. It does not stop anything from being served.
func (s *Server) SetServing(serving bool) {
	answer := healthpb.HealthCheckResponse_NOT_SERVING
	if serving {
		answer = healthpb.HealthCheckResponse_SERVING
	}
	for _, service := range []string{"", pb.Secrets_ServiceDesc.ServiceName, pb.Admin_ServiceDesc.ServiceName} {
		s.health.SetServingStatus(service, answer)
	}
}

// Serve serves until Close, and returns nil then. It can be called once. Its
// error means that a socket broke; the other one is still served until Close.
func (s *Server) Serve() error {
	s.mu.Lock()
	if s.state != made {
		defer s.mu.Unlock()
		if s.state == closed {
			return nil
		}
		return fmt.Errorf("%w: the sockets are served already", secret.ErrInvalid)
	}
	s.state = served
	s.serving.Add(1)
	for _, f := range s.surfaces {
		f.front.open()
	}
	s.mu.Unlock()
	defer s.serving.Done()

	failures := make(chan error, len(s.surfaces))
	for _, f := range s.surfaces {
		s.serving.Go(func() { failures <- f.serve() })
	}
	for range s.surfaces {
		if err := <-failures; err != nil {
			return err
		}
	}
	return nil
}

// Close stops accepting, waits for requests in flight until ctx ends, then
// breaks their connections, which ends their contexts, and waits for them to
// notice. It removes the sockets that are still ours.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.state = closed
	s.mu.Unlock()
	s.health.Shutdown()
	var mu sync.Mutex
	var failures []error
	var closing sync.WaitGroup
	for _, f := range s.surfaces {
		closing.Go(func() {
			err := f.close(ctx)
			mu.Lock()
			defer mu.Unlock()
			failures = append(failures, err)
		})
	}
	closing.Wait()
	s.serving.Wait()
	return errors.Join(failures...)
}
