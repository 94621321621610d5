// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/keyhole-agent/keyhole/identity"
	"github.com/keyhole-agent/keyhole/policy"
	"github.com/keyhole-agent/keyhole/secret"
	"github.com/keyhole-agent/keyhole/socket"
)

// Status tells how the agent is, to whoever holds super on sys/status.
func (a *Agent) Status(ctx context.Context, caller identity.Caller) (socket.Status, error) {
	if err := a.vault.Authorize(ctx, caller, "status", policy.Super, secret.MustParsePath("sys/status")); err != nil {
		return socket.Status{}, err
	}
	status := socket.Status{
		Version: a.options.Version, PID: os.Getpid(), Started: a.started, Development: a.config.Development,
		Components: []socket.Component{
			a.storeStatus(ctx),
			component("audit", a.log.Health(), a.config.Audit.Path),
			component("identity", a.workload.Health(), a.workload.ID().String()),
			a.brokerStatus(ctx),
			a.mountStatus(),
			a.socketStatus(),
		},
	}
	if id := a.workload.ID(); !id.IsZero() {
		status.SPIFFEID = id.String()
	}
	if os.Geteuid() != 0 {
		status.Components = append(status.Components, socket.Component{
			Name: "privileges", Message: fmt.Sprintf("not root: the mount serves processes of uid %d only", os.Geteuid()),
		})
	}
	return status, nil
}

func component(name string, err error, message string) socket.Component {
	if err != nil {
		return socket.Component{Name: name, Message: err.Error()}
	}
	return socket.Component{Name: name, Healthy: true, Message: message}
}

func (a *Agent) storeStatus(ctx context.Context) socket.Component {
	if err := a.backend.Health(ctx); err != nil {
		return component("store", err, "")
	}
	what := a.config.Store.Path
	if a.config.Store.Driver == "memory" {
		what = "in memory, forgotten when the agent stops"
	}
	what = fmt.Sprintf("%s, %d secrets", what, a.vault.Len())
	if damaged := a.vault.Damaged(); damaged > 0 {
		return socket.Component{Name: "store", Message: fmt.Sprintf("%s; %d stored records are refused, see the log and restore them from a backup", what, damaged)}
	}
	return component("store", nil, what)
}

// brokerStatus counts a missing broker as healthy only where it is no use: the
// mount, which needs one, is switched off, too.
func (a *Agent) brokerStatus(ctx context.Context) socket.Component {
	if a.gate == nil {
		return socket.Component{
			Name: "broker", Healthy: !a.config.Mount.Enabled,
			Message: "none is configured (identity.broker): only callers with an SVID are served, and nobody through the mount",
		}
	}
	return component("broker", a.gate.Health(ctx), a.config.Identity.Broker)
}

func (a *Agent) mountStatus() socket.Component {
	if !a.config.Mount.Enabled {
		return component("mount", nil, "switched off by mount.enabled")
	}
	return component("mount", a.mounted(), cmp.Or(a.config.Mount.Link, a.config.Mount.Path))
}

// socketStatus also notices that somebody removed a socket, which the agent
// itself never would.
func (a *Agent) socketStatus() socket.Component {
	err := a.unservedError()
	for _, path := range []string{a.config.Socket, a.config.AdminSocket} {
		if info, statErr := os.Lstat(path); statErr != nil || info.Mode().Type() != fs.ModeSocket {
			err = errors.Join(err, fmt.Errorf("%s is there no longer; start the agent again", path))
		}
	}
	return component("socket", err, a.config.Socket+", "+a.config.AdminSocket)
}

// unservedError returns why the sockets are served no longer, or nil.
func (a *Agent) unservedError() error {
	select {
	case <-a.unserved:
		return errors.Join(errors.New("the sockets are served no longer"), a.serveErr)
	default:
		return nil
	}
}

// VerifyAudit checks every record of the audit log, for whoever holds super on
// sys/audit.
func (a *Agent) VerifyAudit(ctx context.Context, caller identity.Caller) (socket.AuditReport, error) {
	if err := a.vault.Authorize(ctx, caller, "audit-verify", policy.Super, secret.MustParsePath("sys/audit")); err != nil {
		return socket.AuditReport{}, err
	}
	// What is not durable yet is not in the anchor either.
	if _, err := a.log.Sync(ctx); err != nil {
		return socket.AuditReport{}, err
	}
	return verifyLog(ctx, a.config.Audit.Path, a.backend, a.keys)
}
