// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"fmt"
	"reflect"
)

// reloadable tells whether a setting may change while the agent runs.
func reloadable(name string) bool { return name == "administrators" || name == "log.level" }

// Reload takes over what may change while the agent runs: the administrators
// and log.level. It reads the policies from the store again. On any error
// everything stays as it was. It returns what changed, and what would after a
// new start, in words.
func (a *Agent) Reload(ctx context.Context, config Config) ([]string, error) {
	ids, err := config.check()
	if err != nil {
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if err := a.vault.Reload(ctx, ids.administrators); err != nil {
		return nil, err
	}
	running := map[string]string{}
	for s := range settings(reflect.ValueOf(&a.config).Elem(), "") {
		running[s.name] = s.text()
	}
	var changes []string
	for s := range settings(reflect.ValueOf(&config).Elem(), "") {
		switch was := running[s.name]; {
		case was == s.text():
		case reloadable(s.name):
			changes = append(changes, fmt.Sprintf("%s is now %q, was %q", s.name, s.text(), was))
		default:
			changes = append(changes, fmt.Sprintf("%s stays %q until the agent is started again", s.name, was))
		}
	}
	a.config.Administrators, a.config.Log.Level = config.Administrators, config.Log.Level
	if a.options.Level != nil {
		a.options.Level.Set(config.Log.level())
	}
	return changes, nil
}

// running returns the configuration as it is in force.
func (a *Agent) running() Config {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.config
}
