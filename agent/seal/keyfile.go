// SPDX-License-Identifier: Apache-2.0

package seal

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/keyhole-agent/keyhole/secret"
)

// Keyfile opens the keyfile slots of a store. It never prints.
//
// The file is one line:
//
//	"keyhole-key-1:" | base64url (RFC 4648, section 5) of 36 bytes, without padding | "\n"
//
// The 36 bytes are the key, 32, and the first 4 of the SHA-256 of
// "keyhole-key-1:" and the key, which tells a damaged file from a wrong one.
// The line feed may be missing.
type Keyfile struct {
	hidden
	k *keyfile
}

type keyfile struct{ key *[keySize]byte }

const (
	keyfilePrefix  = "keyhole-key-1:"
	keyfileSum     = 4
	maxKeyfileSize = 256 // of what is read; the format needs 63
	keyfilePurpose = "keyhole-keyfile-slot-1"
)

func newKeyfile() Keyfile { return Keyfile{k: &keyfile{key: new([keySize]byte)}} }

// NewKeyfile makes a random key and writes it to a new file with mode 0600, in
// a folder that exists. File and folder are synced when it returns. It never
// overwrites: the error then wraps fs.ErrExist. After an error there is no file.
func NewKeyfile(path string) (_ Keyfile, err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return Keyfile{}, fmt.Errorf("making a keyfile: %w; name another file, or use this one", err)
	}
	if err != nil {
		return Keyfile{}, fmt.Errorf("making a keyfile: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(path))
		}
	}()
	key := newKeyfile()
	_, _ = rand.Read(key.k.key[:]) // never fails
	line := key.line()
	defer clear(line)
	if err := errors.Join(writeKeyfile(file, line), file.Close()); err != nil {
		return Keyfile{}, fmt.Errorf("writing the keyfile: %w", err)
	}
	if err := syncFolder(filepath.Dir(path)); err != nil {
		return Keyfile{}, fmt.Errorf("syncing the keyfile's folder: %w", err)
	}
	return key, nil
}

func writeKeyfile(file *os.File, line []byte) error {
	if err := file.Chmod(0o600); err != nil { // whatever the umask took away
		return err
	}
	if _, err := file.Write(line); err != nil {
		return err
	}
	return file.Sync()
}

func syncFolder(path string) error {
	folder, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(folder.Sync(), folder.Close())
}

// ReadKeyfile reads a keyfile. It refuses a file that is not regular, that
// belongs to neither root nor the process's user, or that others may read or
// write. There is one exception: mode 0440 and owned by root and group root,
// which is how systemd shows a service's credential to its user, who is let in
// by an access control list.
//
// The error is ErrInvalid and says what to do, or that of opening the file.
func ReadKeyfile(path string) (Keyfile, error) {
	// Without O_NONBLOCK a FIFO would wait here for its other end.
	file, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return Keyfile{}, fmt.Errorf("reading the keyfile: %w", err)
	}
	defer func() { _ = file.Close() }() // nothing was written
	if err := checkKeyfile(path, file); err != nil {
		return Keyfile{}, err
	}
	line := make([]byte, maxKeyfileSize)
	defer clear(line)
	n, err := io.ReadFull(file, line)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return Keyfile{}, fmt.Errorf("reading the keyfile: %w", err)
	}
	key, err := parseKeyfile(line[:n])
	if err != nil {
		return Keyfile{}, fmt.Errorf("%w keyfile %s: %w", secret.ErrInvalid, path, err)
	}
	return key, nil
}

// checkKeyfile looks at the open file, which cannot be exchanged any more.
func checkKeyfile(path string, file *os.File) error {
	info, err := file.Stat()
	if err != nil {
		return fmt.Errorf("reading the keyfile: %w", err)
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	switch {
	case !info.Mode().IsRegular():
		return fmt.Errorf("%w keyfile %s: it is no regular file", secret.ErrInvalid, path)
	case !known:
		return fmt.Errorf("%w keyfile %s: its owner is unknown", secret.ErrInvalid, path)
	case owner.Uid != 0 && int64(owner.Uid) != int64(os.Geteuid()):
		return fmt.Errorf("%w keyfile %s: it belongs to user %d, who could change it; run: chown %d %s",
			secret.ErrInvalid, path, owner.Uid, os.Geteuid(), path)
	case info.Mode().Perm() == 0o440 && owner.Uid == 0 && owner.Gid == 0:
		return nil
	case info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%w keyfile %s: with mode %04o others can get at it; run: chmod 600 %s",
			secret.ErrInvalid, path, info.Mode().Perm(), path)
	}
	return nil
}

// line returns the file's content, for the caller to clear.
func (k Keyfile) line() []byte {
	sum := k.k.sum()
	raw := append(append(make([]byte, 0, keySize+keyfileSum), k.k.key[:]...), sum[:keyfileSum]...)
	defer clear(raw)
	line := make([]byte, 0, maxKeyfileSize)
	line = append(line, keyfilePrefix...)
	return append(base64.RawURLEncoding.AppendEncode(line, raw), '\n')
}

func (k *keyfile) sum() [sha256.Size]byte {
	input := append([]byte(keyfilePrefix), k.key[:]...)
	defer clear(input)
	return sha256.Sum256(input)
}

// parseKeyfile reads a keyfile's content. Its errors never quote it.
func parseKeyfile(line []byte) (Keyfile, error) {
	encoded, ok := bytes.CutPrefix(bytes.TrimSuffix(line, []byte("\n")), []byte(keyfilePrefix))
	if !ok {
		return Keyfile{}, fmt.Errorf("it does not begin with %q; make one with: keyhole init", keyfilePrefix)
	}
	raw := make([]byte, maxKeyfileSize)
	defer clear(raw)
	if base64.RawURLEncoding.EncodedLen(keySize+keyfileSum) != len(encoded) {
		return Keyfile{}, fmt.Errorf("it has %d characters where %d are needed; restore it from a copy",
			len(encoded), base64.RawURLEncoding.EncodedLen(keySize+keyfileSum))
	}
	// The decoder skips line breaks, which then leaves too few bytes.
	if n, err := base64.RawURLEncoding.Decode(raw, encoded); err != nil || n != keySize+keyfileSum {
		return Keyfile{}, errors.New("it has characters that do not belong there; restore it from a copy")
	}
	key := newKeyfile()
	copy(key.k.key[:], raw)
	if sum := key.k.sum(); !bytes.Equal(sum[:keyfileSum], raw[keySize:keySize+keyfileSum]) {
		key.Wipe()
		return Keyfile{}, errors.New("it is damaged, its checksum is wrong; restore it from a copy")
	}
	return key, nil
}

// Wipe clears the key. It opens nothing afterwards.
func (k Keyfile) Wipe() {
	if k.k != nil {
		clear(k.k.key[:])
	}
}

// The parameters of a keyfile slot. The key is HKDF-SHA256 (RFC 5869) with that
// salt and the info "keyhole-keyfile-slot-1".
//
//	derivation = 2 (HKDF-SHA256), 1 | salt, 16
const deriveHKDF = 2

func (k Keyfile) slotKind() SlotKind { return SlotKeyfile }

func (k Keyfile) newParameters() []byte { return newSaltedParameters(deriveHKDF) }

func (k Keyfile) deriveKEK(parameters []byte) ([]byte, error) {
	if k.k == nil || *k.k.key == [keySize]byte{} {
		return nil, fmt.Errorf("%w keyfile: it is empty", secret.ErrInvalid)
	}
	r := reader{rest: parameters}
	if derivation := r.uint8(); derivation != deriveHKDF {
		return nil, unknownDerivation(derivation)
	}
	salt := r.take(saltSize)
	if r.failed || len(r.rest) > 0 {
		return nil, fmt.Errorf("reading the parameters of a keyfile slot: %w", secret.ErrTampered)
	}
	return deriveKey(k.k.key[:], salt, keyfilePurpose)
}
