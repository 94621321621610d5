// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// The parts that the test binary plays as another user. What they are told
// comes as arguments and on standard input; what they found goes to standard
// output, line by line.

// opener is a process that lives, and opens a file each time it is told to.
type opener struct {
	t       *testing.T
	process *exec.Cmd
	tell    io.WriteCloser
	answers *bufio.Reader
}

// openAsTold opens the file that an argument names for each line that comes,
// and answers with its content or with the error.
func openAsTold() int {
	lines := bufio.NewScanner(os.Stdin)
	for lines.Scan() {
		content, err := os.ReadFile(os.Args[len(os.Args)-1])
		answer := fmt.Sprintf("%q", content)
		if err != nil {
			answer = err.Error()
		}
		fmt.Println(answer)
	}
	return done
}

// startOpener starts a process of a user that will open a file.
func startOpener(t *testing.T, uid uint32, file string) *opener {
	t.Helper()
	o := &opener{t: t, process: playPart("opener", uid, file)}
	var err error
	if o.tell, err = o.process.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	answers, err := o.process.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	o.answers = bufio.NewReader(answers)
	if err := o.process.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(o.tell.Close(), o.process.Wait()); err != nil {
			t.Error(err)
		}
	})
	return o
}

// open returns the content, quoted, or the error.
func (o *opener) open() string {
	o.t.Helper()
	if _, err := io.WriteString(o.tell, "\n"); err != nil {
		o.t.Fatal(err)
	}
	answer, err := o.answers.ReadString('\n')
	if err != nil {
		o.t.Fatal(err)
	}
	return strings.TrimSpace(answer)
}

// playPart is this test binary as another user's program.
func playPart(part string, uid uint32, argument string) *exec.Cmd {
	process := exec.Command("/proc/self/exe", argument)
	process.Env = []string{partVariable + "=" + part, raceOptions}
	process.Dir = "/"
	process.Stderr = os.Stderr
	process.SysProcAttr = &syscall.SysProcAttr{
		Credential: &syscall.Credential{Uid: uid, Gid: uid}, Pdeathsig: syscall.SIGKILL,
	}
	return process
}
