// SPDX-License-Identifier: Apache-2.0

package client

import (
	"fmt"
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
	"github.com/spiffe/go-spiffe/v2/workloadapi"

	"github.com/keyhole-agent/keyhole/secret"
)

// Where an agent that was started by root serves.
const (
	DefaultSocket      = "/run/keyhole/agent.sock"
	DefaultAdminSocket = "/run/keyhole/admin.sock"
)

// The environment variables that FromEnvironment reads.
const (
	SocketVariable      = "KEYHOLE_SOCKET"
	AdminSocketVariable = "KEYHOLE_ADMIN_SOCKET"
	AgentIDVariable     = "KEYHOLE_AGENT_ID"
	WorkloadAPIVariable = workloadapi.SocketEnv // SPIFFE_ENDPOINT_SOCKET
)

// agentPath is the path of the agent's SPIFFE ID in the client's trust domain,
// unless it is configured.
const agentPath = "/keyhole/agent"

// startTimeout bounds New when its context has no deadline.
const startTimeout = 10 * time.Second

// Config says where the agent is and how to prove who calls.
type Config struct {
	Socket      string // the workload socket; "" for DefaultSocket
	AdminSocket string // the admin socket; "" for DefaultAdminSocket

	// WorkloadAPI is the address of the Workload API, "unix:///run/spire/agent.sock":
	// use mTLS with the SVID from there. "": offer no credential.
	WorkloadAPI string

	// AgentID is the SPIFFE ID that the agent must have under mTLS. Zero: the
	// path /keyhole/agent in the trust domain of the client's own SVID.
	AgentID spiffeid.ID
}

// FromEnvironment returns what the environment says, all of it optional:
// KEYHOLE_SOCKET, KEYHOLE_ADMIN_SOCKET, SPIFFE_ENDPOINT_SOCKET and
// KEYHOLE_AGENT_ID. Pass os.Getenv. The error is secret.ErrInvalid.
func FromEnvironment(getenv func(string) string) (Config, error) {
	config := Config{
		Socket:      getenv(SocketVariable),
		AdminSocket: getenv(AdminSocketVariable),
		WorkloadAPI: getenv(WorkloadAPIVariable),
	}
	if text := getenv(AgentIDVariable); text != "" {
		id, err := spiffeid.FromString(text)
		if err != nil {
			return Config{}, fmt.Errorf("%w %s %q: %w", secret.ErrInvalid, AgentIDVariable, text, err)
		}
		config.AgentID = id
	}
	return config, nil
}

func (c *Config) complete() error {
	if c.Socket == "" {
		c.Socket = DefaultSocket
	}
	if c.AdminSocket == "" {
		c.AdminSocket = DefaultAdminSocket
	}
	if c.WorkloadAPI == "" {
		return nil
	}
	if err := workloadapi.ValidateAddress(c.WorkloadAPI); err != nil {
		return fmt.Errorf("%w address of the Workload API %q: %w", secret.ErrInvalid, c.WorkloadAPI, err)
	}
	return nil
}
