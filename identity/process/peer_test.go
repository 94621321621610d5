// SPDX-License-Identifier: Apache-2.0

package process

import (
	"os"
	"strconv"
	"testing"
)

func TestAPeerIsTheProcessThatConnected(t *testing.T) {
	onEachKernel(t, func(t *testing.T, k kernel) {
		path, accept := listen(t)
		a := start(t, program(t), 1001)
		a.tell("connect "+path, "done")
		p, err := k.peer(accept())
		must(t, err)
		defer p.Close()
		if p.Info().PID != a.pid {
			t.Errorf("the peer is %+v, want process %d", p.Info(), a.pid)
		}
	})
}

func TestAPeerThatBecameASetUIDProgramIsDenied(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		path, accept := listen(t)
		a := start(t, program(t), 1001)
		a.tell("connect "+path, "done")
		a.tell("exec "+setUID(t), "ready")
		p, err := orNothing(k.peer(accept()))
		denied(t, p, err, "ids differ")
	})
}

// A set-uid program that makes itself root altogether has consistent ids again.
func TestAPeerThatBecameAnotherUserIsDenied(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		path, accept := listen(t)
		a := start(t, program(t), 1001)
		a.tell("connect "+path, "done")
		a.tell("exec "+setUID(t), "ready")
		a.tell("uid 0", "done")
		p, err := orNothing(k.peer(accept()))
		denied(t, p, err, "than when it connected")
	})
}

func TestAPeerThatIsGoneIsDeniedWhoeverHasItsNumber(t *testing.T) {
	asRoot(t)
	onEachKernel(t, func(t *testing.T, k kernel) {
		path, accept := listen(t)
		binary := program(t)
		a := start(t, binary, 0)
		a.tell("connect "+path, "done")
		a.leave()
		start(t, binary, 0).tell("as "+strconv.Itoa(a.pid), "child")
		p, err := orNothing(k.peer(accept()))
		denied(t, p, err, "")
	})
}

// setUID is a program that runs as root, whoever executes it.
func setUID(t testing.TB) string {
	t.Helper()
	path := program(t)
	must(t, os.Chmod(path, 0o755|os.ModeSetuid))
	return path
}
