// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/keyhole-agent/keyhole/secret"
)

// Config is what an agent is told. Every setting has a key in the YAML file, an
// environment variable and a flag; "store.path" is KEYHOLE_STORE_PATH and
// --store.path. The help tag is the comment in the file and the flag's usage.
type Config struct {
	TrustDomain    string   `yaml:"trust_domain" help:"the SPIFFE trust domain that the agent and its workloads belong to; required"`
	Administrators []string `yaml:"administrators" help:"SPIFFE IDs that hold super on everything, whatever the policies say"`

	Socket      string `yaml:"socket" help:"Unix socket that workloads call"`
	AdminSocket string `yaml:"admin_socket" help:"Unix socket for administration"`

	Identity IdentityConfig `yaml:"identity" help:"where identities come from"`
	Store    StoreConfig    `yaml:"store" help:"where the sealed records live"`
	Unlock   UnlockConfig   `yaml:"unlock" help:"what opens the root key when the agent starts; the first one that is set"`
	Mount    MountConfig    `yaml:"mount" help:"secrets as files"`
	Audit    AuditConfig    `yaml:"audit" help:"the record of every access"`
	Log      LogConfig      `yaml:"log" help:"what the agent says on standard error"`

	Development bool `yaml:"development" help:"marks every audit record as made in development"`
}

// IdentityConfig says where identities come from.
type IdentityConfig struct {
	WorkloadAPI string `yaml:"workload_api" help:"address of the SPIFFE Workload API, for the agent's own SVID (unix:///...); SPIFFE_ENDPOINT_SOCKET when empty"`
	Broker      string `yaml:"broker" help:"address of the SPIFFE Broker API, which tells what workload a process is (unix:///...)"`
	BrokerID    string `yaml:"broker_id" help:"the broker's SPIFFE ID is this one or lies under it; spiffe://TRUST_DOMAIN/spire/agent when empty"`
}

// StoreConfig says where the sealed records live.
type StoreConfig struct {
	Driver string `yaml:"driver" help:"sqlite, or memory, which forgets everything when the agent stops"`
	Path   string `yaml:"path" help:"the database file; its folder belongs to the agent alone"`
}

// UnlockConfig says what opens the root key.
type UnlockConfig struct {
	Keyfile      string `yaml:"keyfile" help:"a file made by keyhole init; also a systemd credential"`
	PasswordFile string `yaml:"password_file" help:"a file that holds the password, without it the agent asks on its terminal"`
}

// MountConfig says how secrets appear as files.
type MountConfig struct {
	Enabled bool   `yaml:"enabled" help:"without the mount, the sockets still serve"`
	Path    string `yaml:"path" help:"where the filesystem is mounted"`
	Link    string `yaml:"link" help:"a symlink to each caller's own view; none when empty"`
}

// AuditConfig says how the record of every access is kept.
type AuditConfig struct {
	Path  string `yaml:"path" help:"a folder for the audit log"`
	Reads string `yaml:"reads" help:"bounded: a read is answered when its record is written, and it is durable within 50 ms; strict: a read waits until it is durable"`
}

// LogConfig says what the agent tells about itself.
type LogConfig struct {
	Level  string `yaml:"level" help:"debug, info, warn or error"`
	Format string `yaml:"format" help:"json, text, or auto: text on a terminal"`
}

// DefaultConfig returns the settings of an agent that runs as root, or, for
// another user, those in the folders of the XDG Base Directory Specification.
func DefaultConfig() Config {
	run, data := "/run/keyhole", "/var/lib/keyhole"
	if os.Geteuid() != 0 {
		run = filepath.Join(xdg("XDG_RUNTIME_DIR", ".cache"), "keyhole")
		data = filepath.Join(xdg("XDG_DATA_HOME", ".local/share"), "keyhole")
	}
	return Config{
		Socket:      filepath.Join(run, "agent.sock"),
		AdminSocket: filepath.Join(run, "admin.sock"),
		Store:       StoreConfig{Driver: "sqlite", Path: filepath.Join(data, "keyhole.db")},
		Mount:       MountConfig{Enabled: true, Path: filepath.Join(run, "fs"), Link: filepath.Join(run, "secrets")},
		Audit:       AuditConfig{Path: filepath.Join(data, "audit"), Reads: "bounded"},
		Log:         LogConfig{Level: "info", Format: "auto"},
	}
}

// DefaultConfigPath is where the agent and init look for the file.
func DefaultConfigPath() string {
	if os.Geteuid() == 0 {
		return "/etc/keyhole/config.yaml"
	}
	return filepath.Join(xdg("XDG_CONFIG_HOME", ".config"), "keyhole", "config.yaml")
}

func xdg(variable, underHome string) string {
	if dir := os.Getenv(variable); filepath.IsAbs(dir) {
		return dir
	}
	return filepath.Join(os.Getenv("HOME"), underHome)
}

// Check returns all that is wrong with the settings; each error is
// secret.ErrInvalid and names the setting.
func (c Config) Check() error {
	_, err := c.check()
	return err
}

// identities are the parsed SPIFFE parts of a Config.
type identities struct {
	trustDomain    spiffeid.TrustDomain
	brokerPrefix   spiffeid.ID // zero for the default
	administrators []spiffeid.ID
}

func (c Config) check() (identities, error) {
	var wrong problems
	ids := c.checkIdentities(&wrong)
	oneOf := func(setting, value string, allowed ...string) {
		if !slices.Contains(allowed, value) {
			wrong.add(setting, "%q is none of %s", value, strings.Join(allowed, ", "))
		}
	}
	oneOf("store.driver", c.Store.Driver, "sqlite", "memory")
	oneOf("audit.reads", c.Audit.Reads, "bounded", "strict")
	oneOf("log.level", c.Log.Level, "debug", "info", "warn", "error")
	oneOf("log.format", c.Log.Format, "auto", "json", "text")
	c.checkPaths(&wrong)
	return ids, errors.Join(wrong...)
}

// problems collects what is wrong with settings.
type problems []error

func (p *problems) add(setting, format string, args ...any) {
	*p = append(*p, fmt.Errorf("%w setting %s: %w", secret.ErrInvalid, setting, fmt.Errorf(format, args...)))
}

func (c Config) checkIdentities(wrong *problems) identities {
	var ids identities
	domain, err := spiffeid.TrustDomainFromString(c.TrustDomain)
	switch {
	case c.TrustDomain == "":
		wrong.add("trust_domain", "it is missing; keyhole init writes a configuration")
	case err != nil:
		wrong.add("trust_domain", "%q: %w", c.TrustDomain, err)
	}
	ids.trustDomain = domain
	for _, text := range c.Administrators {
		id, err := spiffeid.FromString(text)
		switch {
		case err != nil:
			wrong.add("administrators", "%q: %w", text, err)
		case id.Path() == "":
			wrong.add("administrators", "%q names a whole trust domain, not a workload in it", text)
		}
		ids.administrators = append(ids.administrators, id)
	}
	if c.Identity.BrokerID != "" {
		ids.brokerPrefix, err = spiffeid.FromString(c.Identity.BrokerID)
		switch {
		case err != nil:
			wrong.add("identity.broker_id", "%q: %w", c.Identity.BrokerID, err)
		case ids.brokerPrefix.Path() == "":
			wrong.add("identity.broker_id", "%q names a whole trust domain: any workload in it could be the broker", c.Identity.BrokerID)
		}
	}
	if address := c.Identity.WorkloadAPI; address != "" && !isSocketAddress(address) {
		// SPIFFE Workload Endpoint, section 4, also knows tcp://IP:PORT.
		if err := workloadapi.ValidateAddress(address); err != nil || !strings.HasPrefix(address, "tcp://") {
			wrong.add("identity.workload_api", "%q: an address is unix:// and an absolute path", address)
		}
	}
	if address := c.Identity.Broker; address != "" && !isSocketAddress(address) {
		wrong.add("identity.broker", "%q: an address is unix:// and an absolute path", address)
	}
	return ids
}

func isSocketAddress(address string) bool {
	path, found := strings.CutPrefix(address, "unix://")
	return found && filepath.IsAbs(path)
}

// checkPaths also keeps the agent's own files out of its mount, where it would
// wait for itself.
func (c Config) checkPaths(wrong *problems) {
	for _, s := range []struct {
		setting, path string
		optional      bool
	}{
		{"socket", c.Socket, false}, {"admin_socket", c.AdminSocket, false}, {"store.path", c.Store.Path, false},
		{"unlock.keyfile", c.Unlock.Keyfile, true}, {"unlock.password_file", c.Unlock.PasswordFile, true},
		{"mount.path", c.Mount.Path, false}, {"mount.link", c.Mount.Link, true}, {"audit.path", c.Audit.Path, false},
	} {
		switch inMount, err := filepath.Rel(c.Mount.Path, s.path); {
		case s.optional && s.path == "":
		case !filepath.IsAbs(s.path):
			wrong.add(s.setting, "%q is not an absolute path", s.path)
		case s.setting != "mount.path" && err == nil && filepath.IsLocal(inMount):
			wrong.add(s.setting, "%q lies in the mount, %q", s.path, c.Mount.Path)
		}
	}
	if filepath.Clean(c.Socket) == filepath.Clean(c.AdminSocket) {
		wrong.add("admin_socket", "%q is the workload socket already", c.AdminSocket)
	}
}
