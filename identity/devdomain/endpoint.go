// SPDX-License-Identifier: Apache-2.0

package devdomain

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"sync"
	"syscall"

	"google.golang.org/grpc"

	"github.com/keyhole-agent/keyhole/identity/process"
	"github.com/keyhole-agent/keyhole/secret"
)

// endpoint is a gRPC server on a Unix socket that can be stopped and started.
type endpoint struct {
	path  string
	mode  fs.FileMode // of the socket
	build func() *grpc.Server

	mu      sync.Mutex
	server  *grpc.Server // nil while stopped
	serving sync.WaitGroup
	failure error // why serving ended, if not because of stop; read after serving
}

// address is the socket as a URI, as the standard wants it (SPIFFE Workload
// Endpoint, section 4).
func (e *endpoint) address() string { return (&url.URL{Scheme: "unix", Path: e.path}).String() }

func (e *endpoint) start() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server != nil {
		return nil
	}
	if err := removeStale(e.path); err != nil {
		return err
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: e.path, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listening on %s (%d bytes, at most 107 are possible): %w", e.path, len(e.path), err)
	}
	if err := os.Chmod(e.path, e.mode); err != nil {
		return errors.Join(fmt.Errorf("setting the mode of %s: %w", e.path, err), listener.Close())
	}
	server := e.build()
	e.server, e.failure = server, nil
	e.serving.Go(func() { e.failure = server.Serve(listener) })
	return nil
}

// stop closes the listener, which removes the socket, and all connections, and
// waits for the calls under way.
func (e *endpoint) stop() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.server == nil {
		return nil
	}
	e.server.Stop()
	e.serving.Wait()
	e.server = nil
	if e.failure != nil && !errors.Is(e.failure, grpc.ErrServerStopped) {
		return fmt.Errorf("serving %s: %w", e.path, e.failure)
	}
	return nil
}

// removeStale removes a socket that nobody listens on. The error is
// secret.ErrInUse when somebody does, and when the path is no socket.
func removeStale(path string) error {
	found, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("looking for an old socket: %w", err)
	}
	if found.Mode().Type() != fs.ModeSocket {
		return fmt.Errorf("%w: %s exists and is no socket", secret.ErrInUse, path)
	}
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
	if err == nil {
		return errors.Join(fmt.Errorf("%w: %s serves %s", secret.ErrInUse, listenerOf(conn), path), conn.Close())
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("looking whether %s is in use: %w", path, err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("removing an old socket: %w", err)
	}
	return nil
}

// listenerOf names the process at the other end, as far as it can be told.
func listenerOf(conn *net.UnixConn) string {
	other, err := process.PeerOf(conn)
	if err != nil {
		return "another process"
	}
	defer other.Close()
	return fmt.Sprintf("process %d", other.Info().PID)
}
