// SPDX-License-Identifier: Apache-2.0

package bench

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/rpc"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/pprof"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// The test binary plays several parts: the benchmarks, which only compare, and
// whatever is compared, each in a process of its own. These are told what to do
// over a socket, descriptor 3.
const partVariable = "KEYHOLE_BENCH_PART"

type nothing = struct{}

// closer is a part that holds something.
type closer interface{ close() error }

// play serves calls until the benchmarks hang up.
func play(name string) error {
	var part closer
	switch name {
	case "agent":
		part = &agentPart{}
	case "floor":
		part = &floorPart{}
	case "store":
		part = &storePart{}
	case "user":
		part = &userPart{}
	default:
		return errors.New("there is no such part")
	}
	socket, err := net.FileConn(os.NewFile(3, "socket"))
	if err != nil {
		return err
	}
	server := rpc.NewServer()
	if err := errors.Join(server.RegisterName("Part", part), server.RegisterName("Process", &processPart{})); err != nil {
		return err
	}
	server.ServeConn(socket)
	return part.close()
}

// process is a part, seen from the benchmarks.
type process struct {
	b       *testing.B
	name    string
	command *exec.Cmd
	client  *rpc.Client
}

// start starts a part as the given user, with the same number as group.
func start(b *testing.B, name string, uid uint32) *process {
	b.Helper()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	check(b, err)
	ours, theirs := os.NewFile(uintptr(pair[0]), "ours"), os.NewFile(uintptr(pair[1]), "theirs")
	p := &process{b: b, name: name, command: exec.Command("/proc/self/exe")}
	p.command.Env = append(os.Environ(), partVariable+"="+name)
	p.command.ExtraFiles = []*os.File{theirs}
	p.command.Stdout, p.command.Stderr = os.Stderr, os.Stderr
	p.command.Dir = "/"
	p.command.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the benchmarks, which then hang up
	if int(uid) != os.Geteuid() {
		p.command.SysProcAttr.Credential = &syscall.Credential{Uid: uid, Gid: uid}
	}
	check(b, p.command.Start())
	conn, err := net.FileConn(ours)
	check(b, errors.Join(err, ours.Close(), theirs.Close()))
	p.client = rpc.NewClient(conn)
	b.Cleanup(p.stop)
	return p
}

// stop ends the part in good order. Stopping again does nothing.
func (p *process) stop() {
	if p.client == nil {
		return
	}
	if err := errors.Join(p.client.Close(), p.command.Wait()); err != nil {
		p.b.Errorf("stopping the %s: %v", p.name, err)
	}
	p.client = nil
}

// call makes the part do something.
func (p *process) call(method string, arguments, reply any) {
	p.b.Helper()
	if arguments == nil {
		arguments = nothing{}
	}
	if reply == nil {
		reply = &nothing{}
	}
	if err := p.client.Call(method, arguments, reply); err != nil {
		p.b.Fatalf("the %s: %s: %v", p.name, method, err)
	}
}

// work makes the part do some work, and is one side of a comparison.
func (p *process) work(method string, w Work) side {
	return func() Done {
		p.b.Helper()
		var done Done
		p.call("Part."+method, w, &done)
		return done
	}
}

// processPart is what can be asked of every part.
type processPart struct{ profile bytes.Buffer }

// Memory is what a process takes, in bytes.
type Memory struct {
	Resident uint64 // all of it, the program's pages included
	Heap     uint64 // live objects of the Go heap
}

// Collect collects the garbage, gives what is free back, and tells what is left.
func (*processPart) Collect(nothing, reply *Memory) error {
	runtime.GC() // twice: the first may leave what finalizers hold
	debug.FreeOSMemory()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	reply.Heap = stats.HeapAlloc
	var err error
	reply.Resident, err = resident(os.Getpid())
	return err
}

// resident reads how much memory a process takes.
func resident(pid int) (uint64, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(status)) {
		if text, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kilobytes, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSpace(text), " kB"), 10, 64)
			return kilobytes << 10, err
		}
	}
	return 0, errors.New("the kernel does not say how much memory is resident")
}

// BeginProfile begins a CPU profile.
func (p *processPart) BeginProfile(nothing, *nothing) error {
	p.profile.Reset()
	return pprof.StartCPUProfile(&p.profile)
}

// EndProfile ends it, and tells it.
func (p *processPart) EndProfile(_ nothing, reply *[]byte) error {
	pprof.StopCPUProfile()
	*reply = bytes.Clone(p.profile.Bytes())
	return nil
}

// profiled does some work so many times more, with profiles of the parts, when
// there are to be any.
func profiled(b *testing.B, name string, times int, work side, parts ...*process) {
	b.Helper()
	if *profiles == "" {
		return
	}
	for _, p := range parts {
		p.call("Process.BeginProfile", nil, nil)
	}
	for range times {
		work()
	}
	for _, p := range parts {
		var profile []byte
		p.call("Process.EndProfile", nil, &profile)
		check(b, os.WriteFile(filepath.Join(*profiles, name+"-"+p.name+".pprof"), profile, 0o600))
	}
}
