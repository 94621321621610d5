// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/keyhole-agent/keyhole/agent"
	"github.com/keyhole-agent/keyhole/secret"
)

// maxConfig bounds the configuration file, in bytes.
const maxConfig = 1 << 20

// readConfig reads the file, which may be missing where flags and environment
// say what it would.
func (p *program) readConfig(path string, flags *pflag.FlagSet) (agent.Config, error) {
	document, err := readConfigFile(path)
	if errors.Is(err, fs.ErrNotExist) && !flags.Changed("config") {
		err = nil
	}
	if errors.Is(err, fs.ErrNotExist) {
		return agent.Config{}, fmt.Errorf("%w configuration: %w; keyhole init writes one", secret.ErrInvalid, err)
	}
	if err != nil {
		return agent.Config{}, fmt.Errorf("%w configuration: %w", secret.ErrInvalid, err)
	}
	config, err := agent.ReadConfig(document, p.environ, flags)
	if err != nil {
		return agent.Config{}, fmt.Errorf("%s: %w", path, err)
	}
	return config, nil
}

// readConfigFile refuses a file that somebody else than root and this user can
// change: it says who administers the agent.
func readConfigFile(path string) (_ []byte, err error) {
	file, err := os.Open(filepath.Clean(path))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	info, err := file.Stat()
	if err != nil {
		return nil, err
	}
	owner, known := info.Sys().(*syscall.Stat_t)
	switch mode := info.Mode().Perm(); {
	case !known, owner.Uid != 0 && int64(owner.Uid) != int64(os.Geteuid()):
		return nil, fmt.Errorf("%s belongs to another user, who could change it; run: chown %d %s", path, os.Geteuid(), path)
	case mode&0o022 != 0:
		return nil, fmt.Errorf("%s can be changed by others (mode %04o); run: chmod go-w %s", path, mode, path)
	}
	document, err := io.ReadAll(io.LimitReader(file, maxConfig+1))
	if err == nil && len(document) > maxConfig {
		err = fmt.Errorf("%s has more than %d bytes", path, maxConfig)
	}
	return document, err
}
