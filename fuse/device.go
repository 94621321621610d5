// SPDX-License-Identifier: Apache-2.0

package fuse

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"

	gofuse "github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// Sizes in bytes.
const (
	maxRead      = 128 << 10 // of the payload of one reply: READ and READDIR
	maxPages     = maxRead / 4096
	requestBytes = 8 << 10        // the kernel's least; ours have no payload, as nothing is written
	replyBytes   = 4 << 10        // of all replies but those with a payload
	bulkBytes    = maxRead + 4096 // of a reply with a payload
)

// maxLoops bounds how many requests are in work at once.
const maxLoops = 1000

// Operations, as the kernel numbers them (uapi/linux/fuse.h), of which the loop
// knows more than go-fuse.
const (
	opLookup      = 1
	opReadlink    = 5
	opOpen        = 14
	opRead        = 15
	opGetXAttr    = 22
	opListXAttr   = 23
	opReadDir     = 28
	opIoctl       = 39
	opReadDirPlus = 44
	opLast        = 64 // beyond the highest
)

// device is the connection to the kernel: a /dev/fuse descriptor, and loops that
// each read a request, answer it, and read the next. There is always a loop that
// reads, so that a caller who waits in a handler delays no other, and as a
// handler runs in the loop that read its request, the usual request wakes one
// thread and no goroutine.
type device struct {
	fd       int
	protocol *gofuse.ProtocolServer
	tree     *tree
	log      *slog.Logger
	bulk     *lockedBuffers
	keep     int32 // loops that stay when there is nothing to do
	limit    int32 // loops at most
	counts   [opLast]atomic.Uint64

	idle    atomic.Int32 // loops that read, or are about to
	total   atomic.Int32 // loops
	running sync.WaitGroup
}

func newDevice(fd int, t *tree) (*device, error) {
	bulk, err := newLockedBuffers(bulkBuffers, bulkBytes, t.Logger)
	if err != nil {
		return nil, err
	}
	options := &gofuse.MountOptions{
		Name:                     "keyhole",
		MaxWrite:                 4096, // sets the size of the buffer that requests need
		MaxBackground:            64,
		DisableReadDirPlus:       true, // it would look up each name, for a listing that did not ask
		ExplicitDataCacheControl: true, // an inode's content never changes
		DisabledCapabilities:     gofuse.CAP_NO_OPEN_SUPPORT | gofuse.CAP_PASSTHROUGH,
		PanicHandler:             t.panicked,
		Logger:                   slog.NewLogLogger(t.Logger.Handler(), slog.LevelWarn),
	}
	return &device{
		fd:       fd,
		protocol: gofuse.NewProtocolServer(t, options),
		tree:     t,
		log:      t.Logger,
		bulk:     bulk,
		keep:     int32(min(2*max(runtime.GOMAXPROCS(0), 2), 16)),
		limit:    maxLoops,
	}, nil
}

// handshake answers the kernel's first request, INIT. go-fuse derives the pages
// of a reply from the size of writes, which we do not have, so they are set here.
func (d *device) handshake() error {
	request, reply := make([]byte, requestBytes), make([]byte, replyBytes)
	count, err := d.receive(request)
	if err != nil {
		return fmt.Errorf("reading the kernel's greeting: %w", err)
	}
	size, status := d.protocol.HandleRequest([][]byte{request[:count]}, [][]byte{reply})
	if status != gofuse.OK || size < int(unsafe.Sizeof(gofuse.OutHeader{})+unsafe.Sizeof(gofuse.InitOut{})) {
		return fmt.Errorf("answering the kernel's greeting: %s", status)
	}
	greeting := (*gofuse.InitOut)(unsafe.Pointer(&reply[unsafe.Sizeof(gofuse.OutHeader{})]))
	greeting.MaxPages = maxPages
	if _, err := unix.Write(d.fd, reply[:size]); err != nil {
		return fmt.Errorf("answering the kernel's greeting: %w", err)
	}
	return nil
}

// start starts the loops; running is done when the kernel ended the connection.
func (d *device) start() {
	for range max(runtime.GOMAXPROCS(0), 2) {
		d.spawn()
	}
}

// spawn starts a loop, unless there are too many.
func (d *device) spawn() bool {
	if d.total.Add(1) > d.limit {
		d.total.Add(-1)
		return false
	}
	d.idle.Add(1) // now, or requests that come before it runs spawn more
	d.running.Go(func() {
		defer d.total.Add(-1)
		d.loop()
	})
	return true
}

// loop serves until the connection ends, or there are enough others that read.
// It begins counted among those.
func (d *device) loop() {
	request, reply := make([]byte, requestBytes), make([]byte, replyBytes)
	for {
		count, err := d.receive(request)
		others := d.idle.Add(-1)
		if err != nil {
			if !errors.Is(err, unix.ENODEV) {
				d.log.Error("the connection to the kernel failed", "error", err)
			}
			return
		}
		// The last one that may not be replaced must not wait.
		patient := others > 0 || d.spawn()
		d.serve(request[:count], reply, patient)
		if d.idle.Add(1) > d.keep {
			d.idle.Add(-1)
			return
		}
	}
}

// receive reads one request. unix.Read tells the scheduler that the thread
// blocks; a raw system call here would stop the garbage collector.
func (d *device) receive(request []byte) (int, error) {
	for {
		count, err := unix.Read(d.fd, request)
		switch {
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.ENOENT), errors.Is(err, unix.EAGAIN):
			continue // ENOENT: its caller was killed in between
		case err != nil:
			return 0, fmt.Errorf("reading from /dev/fuse: %w", err)
		case count < int(unsafe.Sizeof(gofuse.InHeader{})):
			return 0, fmt.Errorf("reading from /dev/fuse: a request of %d bytes", count)
		}
		return count, nil
	}
}

// pollHackName is a name that go-fuse answers for by itself, in the root.
var pollHackName = []byte(".go-fuse-epoll-hack\x00")

// serve answers one request, which it does not keep. It may wait only if it is
// patient.
func (d *device) serve(request, reply []byte, patient bool) {
	header := (*gofuse.InHeader)(unsafe.Pointer(&request[0]))
	d.counts[min(header.Opcode, opLast-1)].Add(1)
	switch header.Opcode {
	case opOpen, opReadlink:
		if !patient {
			d.send(header, failure(reply, header.Unique, unix.EAGAIN))
			return
		}
	case opRead, opReadDir, opReadDirPlus, opGetXAttr, opListXAttr, opIoctl:
		reply = d.bulk.take()
		defer d.bulk.giveBack(reply)
	case opLookup:
		if header.NodeId == rootID && bytes.HasSuffix(request, pollHackName) {
			d.send(header, failure(reply, header.Unique, unix.ENOENT))
			return
		}
	}
	size, status := d.protocol.HandleRequest([][]byte{request}, [][]byte{reply})
	switch {
	case status != gofuse.OK: // go-fuse could not make sense of it, and its caller waits
		d.send(header, failure(reply, header.Unique, unix.EIO))
	case size > 0:
		d.send(header, reply[:size])
		if header.Opcode == opRead {
			clear(reply[:size])
		}
	}
}

// send writes a reply. ENOENT says that nobody waits for it any more; a node that
// it named is then not referred to.
func (d *device) send(header *gofuse.InHeader, reply []byte) {
	_, err := unix.Write(d.fd, reply)
	switch {
	case err == nil, errors.Is(err, unix.ENODEV):
	case errors.Is(err, unix.ENOENT):
		entry := unsafe.Sizeof(gofuse.OutHeader{})
		if header.Opcode == opLookup && len(reply) >= int(entry)+8 {
			d.tree.Forget(binary.NativeEndian.Uint64(reply[entry:]), 1)
		}
	default:
		d.log.Error("answering the kernel", "opcode", header.Opcode, "error", err)
	}
}

// failure makes the reply that says only that a request failed:
//
//	length u32, -errno i32, unique u64
func failure(reply []byte, unique uint64, errno syscall.Errno) []byte {
	reply = reply[:unsafe.Sizeof(gofuse.OutHeader{})]
	binary.NativeEndian.PutUint32(reply, uint32(len(reply)))
	binary.NativeEndian.PutUint32(reply[4:], -uint32(errno))
	binary.NativeEndian.PutUint64(reply[8:], unique)
	return reply
}
