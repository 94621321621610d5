// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/secret"
)

// Config is what a filesystem needs.
type Config struct {
	Dir      string // absolute path of the public mount; made when missing, 0755
	Private  string // absolute path of the folder around the agent's own mount, made when missing, 0700; not used without root
	SelfLink string // path of a symbolic link to the caller's view, "" for none

	Threads  identity.Threads
	Names    Names
	Files    Files
	Refusals Refusals
	Feed     Feed

	Logger   *slog.Logger     // nil: nothing is logged
	Now      func() time.Time // nil: the system's clock
	Grace    time.Duration    // how long a superseded file can still be opened; 0: 1 s
	Deadline time.Duration    // how long identifying and opening may take; 0: 2 s
	Idle     time.Duration    // how long a view that nobody refers to is kept; 0: 10 min
	MaxViews int              // 0: 4,096
}

// complete checks the configuration and fills in what has a default. The error
// is secret.ErrInvalid.
func (c Config) complete() (Config, error) {
	switch {
	case c.Threads == nil, c.Names == nil, c.Files == nil, c.Refusals == nil, c.Feed == nil:
		return c, fmt.Errorf("%w filesystem configuration: a port is missing", secret.ErrInvalid)
	case !filepath.IsAbs(c.Dir):
		return c, fmt.Errorf("%w mount point %q: it is not absolute", secret.ErrInvalid, c.Dir)
	case os.Geteuid() == 0 && !filepath.IsAbs(c.Private):
		return c, fmt.Errorf("%w folder %q for the agent's own mount: it is not absolute", secret.ErrInvalid, c.Private)
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Grace = defaultTo(c.Grace, time.Second)
	c.Deadline = defaultTo(c.Deadline, 2*time.Second)
	c.Idle = defaultTo(c.Idle, 10*time.Minute)
	c.MaxViews = defaultTo(c.MaxViews, 4096)
	return c, nil
}

func defaultTo[T comparable](value, otherwise T) T {
	var zero T
	if value == zero {
		return otherwise
	}
	return value
}

// FS is a mounted filesystem.
type FS struct {
	tree   *tree
	device *device
	mount  *mount
	cancel context.CancelFunc
	done   chan struct{} // closed when all goroutines have ended

	closing sync.Once
	closed  error
}

// New mounts the filesystem and serves it until Close, or until somebody
// unmounts it. A mount that a killed agent left behind is replaced.
//
// Errors: secret.ErrInvalid for the configuration; secret.ErrInUse when another
// agent serves there, or something else is mounted; secret.ErrUnavailable, with
// what to do about it, when this machine or this user cannot mount.
func New(config Config) (*FS, error) {
	config, err := config.complete()
	if err != nil {
		return nil, err
	}
	mount, fd, err := newMount(config)
	if err != nil {
		return nil, err
	}
	fs, err := serve(config, mount, fd)
	if err != nil {
		return nil, errors.Join(err, mount.remove(), unix.Close(fd))
	}
	if err := mount.publish(config); err != nil {
		ctx, cancel := context.WithTimeout(context.Background(), config.Deadline)
		defer cancel()
		return nil, errors.Join(err, fs.Close(ctx))
	}
	return fs, nil
}

// serve greets the kernel and starts the goroutines. fd is theirs on success.
func serve(config Config, mount *mount, fd int) (*FS, error) {
	ctx, cancel := context.WithCancel(context.Background())
	tree := newTree(ctx, config, os.Geteuid(), os.Getegid())
	device, err := newDevice(fd, tree)
	if err != nil {
		cancel()
		return nil, err
	}
	if err := device.handshake(); err != nil {
		cancel()
		return nil, errors.Join(err, device.bulk.close())
	}
	fs := &FS{tree: tree, device: device, mount: mount, cancel: cancel, done: make(chan struct{})}
	var following sync.WaitGroup
	newFollower(tree, device).start(ctx, &following)
	device.start()
	go func() {
		defer close(fs.done)
		device.running.Wait()
		cancel()
		following.Wait()
		if err := errors.Join(device.bulk.close(), unix.Close(fd)); err != nil {
			config.Logger.Error("closing the connection to the kernel", "error", err)
		}
	}()
	return fs, nil
}

// Done is closed when the filesystem is no longer served, by Close or because
// somebody unmounted it.
func (fs *FS) Done() <-chan struct{} { return fs.done }

// Close unmounts, also under the hands of users, and waits for the goroutines
// until ctx ends. Requests in work fail. It removes what New made.
func (fs *FS) Close(ctx context.Context) error {
	fs.closing.Do(func() {
		fs.cancel()
		fs.closed = fs.mount.remove()
		select {
		case <-fs.done:
		case <-ctx.Done():
			fs.closed = errors.Join(fs.closed, fmt.Errorf("waiting for the last users of %s: %w", fs.mount.dir, ctx.Err()))
		}
	})
	return fs.closed
}

// Stats tells how busy the filesystem is.
type Stats struct {
	Views int // views that are kept
	Nodes int // inodes that the kernel refers to, views' roots and three fixed ones included
	Loops int // requests in work, and loops ready for more

	// Requests counts the kernel's requests since the start, by their number in
	// uapi/linux/fuse.h; those that were never made are absent.
	Requests map[int]uint64
}

// Stats may be called at any time.
func (fs *FS) Stats() Stats {
	stats := Stats{Loops: int(fs.device.total.Load()), Requests: map[int]uint64{}}
	stats.Views, stats.Nodes = fs.tree.table.size()
	for operation := range fs.device.counts {
		if count := fs.device.counts[operation].Load(); count > 0 {
			stats.Requests[operation] = count
		}
	}
	return stats
}
