// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/agent/seal"
	"github.com/keyhole-agent/keyhole/backend"
	"github.com/keyhole-agent/keyhole/secret"
)

// maxPasswordFile bounds what is read of a password file, in bytes. A password
// is shorter.
const maxPasswordFile = 4096

// Opener makes what opens the root key, from the first that is set: the
// keyfile, the password file, or ask, which asks a person. It is nil for a store
// that forgets, which nothing has to open. New and VerifyAudit clear it.
func Opener(config Config, ask func() ([]byte, error)) (seal.Opener, error) {
	switch {
	case config.Store.Driver == "memory":
		return nil, nil
	case config.Unlock.Keyfile != "":
		return seal.ReadKeyfile(config.Unlock.Keyfile)
	case config.Unlock.PasswordFile != "":
		return passwordOpener(func() ([]byte, error) { return ReadPasswordFile(config.Unlock.PasswordFile) })
	case ask != nil:
		return passwordOpener(ask)
	}
	return nil, fmt.Errorf("%w configuration: nothing opens the store: set unlock.keyfile or unlock.password_file, or start the agent on a terminal", secret.ErrInvalid)
}

func passwordOpener(read func() ([]byte, error)) (seal.Opener, error) {
	password, err := read()
	if err != nil {
		return nil, err
	}
	opener, err := seal.NewPassword(password)
	if err != nil {
		clear(password)
		return nil, err
	}
	return opener, nil
}

// wipe clears what opened the root key, if that can be cleared.
func wipe(opener seal.Opener) {
	if clearable, ok := opener.(interface{ Wipe() }); ok {
		clearable.Wipe()
	}
}

// forgottenPassword opens a store that does not outlive this process.
func forgottenPassword() (seal.Password, error) {
	password := make([]byte, 32)
	_, _ = rand.Read(password) // never fails
	return seal.NewPassword(password)
}

// unlock opens the root key. A store without one is an error: an agent that
// makes a new key by itself would hide that its store was lost.
func unlock(ctx context.Context, b backend.Backend, opener seal.Opener) (*seal.Keyring, error) {
	lock, err := readLock(ctx, b)
	if err != nil {
		return nil, err
	}
	if lock == nil {
		return nil, fmt.Errorf("%w: the store has no root key; run keyhole init first", secret.ErrSealed)
	}
	if opener == nil {
		return nil, fmt.Errorf("%w: nothing opens the store", secret.ErrSealed)
	}
	info, err := b.Info(ctx)
	if err != nil {
		return nil, err
	}
	keys, err := seal.Unlock(info.StoreID, lock, opener)
	if err != nil {
		return nil, fmt.Errorf("unlocking the store: %w", err)
	}
	return keys, nil
}

// ReadPasswordFile takes the first line, without its end, for the caller to
// clear. A file that belongs to somebody else, or that others can get at, is
// secret.ErrInvalid. There is one exception, as for a keyfile: the credential
// that systemd shows to a service, 0440 and root's.
func ReadPasswordFile(path string) (_ []byte, err error) {
	// Without O_NONBLOCK a FIFO would wait here for its other end.
	file, err := os.OpenFile(filepath.Clean(path), os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("reading the password: %w", err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	if err := checkPasswordFile(path, file); err != nil {
		return nil, err
	}
	content := make([]byte, maxPasswordFile)
	defer clear(content)
	n, err := io.ReadFull(file, content)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("reading the password: %w", err)
	}
	line, _, _ := bytes.Cut(content[:n], []byte("\n"))
	line = bytes.TrimSuffix(line, []byte("\r"))
	if len(line) == 0 {
		return nil, fmt.Errorf("%w password file %s: its first line is empty", secret.ErrInvalid, path)
	}
	return bytes.Clone(line), nil
}

// checkPasswordFile looks at the open file, which cannot be exchanged any more.
func checkPasswordFile(path string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("reading the password: %w", err)
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !known:
		return fmt.Errorf("%w password file %s: its owner is unknown", secret.ErrInvalid, path)
	case owner.Uid != 0 && int64(owner.Uid) != int64(os.Geteuid()):
		return fmt.Errorf("%w password file %s: it belongs to user %d, who could change it; run: chown %d %s",
			secret.ErrInvalid, path, owner.Uid, os.Geteuid(), path)
	case mode == 0o440 && owner.Uid == 0 && owner.Gid == 0:
		return nil
	case mode&0o077 != 0:
		return fmt.Errorf("%w password file %s: with mode %04o others can get at it; run: chmod 600 %s",
			secret.ErrInvalid, path, mode, path)
	}
	return nil
}
