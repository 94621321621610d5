// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"context"
	"log/slog"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/keyhole-agent/keyhole/secret"
)

func TestReloadTakesOverWhatMayChangeAndNamesTheRest(t *testing.T) {
	s := surround(t)
	a := s.start(t)
	if changes, err := a.Reload(t.Context(), a.running()); err != nil || len(changes) > 0 {
		t.Errorf("without a change: %q, %v", changes, err)
	}
	changed := s.config
	changed.Administrators = []string{nobody.String()}
	changed.Log.Level, changed.Audit.Reads = "debug", "strict"
	changes, err := a.Reload(t.Context(), changed)
	check(t, err)
	want := []string{
		`administrators is now "spiffe://dev.keyhole.test/nobody", was "spiffe://dev.keyhole.test/admin"`,
		`audit.reads stays "bounded" until the agent is started again`,
		`log.level is now "debug", was "info"`,
	}
	if !reflect.DeepEqual(changes, want) {
		t.Errorf("%q", changes)
	}
	if s.level.Level() != slog.LevelDebug {
		t.Error(s.level.Level())
	}
	if _, err := a.Status(t.Context(), as(nobody)); err != nil {
		t.Errorf("the new administrator: %v", err)
	}
	_, err = a.Status(t.Context(), as(admin))
	wants(t, err, secret.ErrDenied)
	if running := a.running(); running.Audit.Reads != "bounded" || running.Log.Level != "debug" {
		t.Errorf("%+v", running)
	}
}

func TestAReloadThatFailsChangesNothing(t *testing.T) {
	s := surround(t)
	a := s.start(t)
	wrong := s.config
	wrong.Administrators, wrong.Log.Level = []string{nobody.String()}, "loud"
	changes, err := a.Reload(t.Context(), wrong)
	wants(t, err, secret.ErrInvalid, "log.level")
	if changes != nil {
		t.Errorf("%q", changes)
	}
	// The configuration is right, but the policies are not read to their end.
	right := s.config
	right.Administrators, right.Log.Level = []string{nobody.String()}, "debug"
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = a.Reload(ended, right)
	wants(t, err, context.Canceled)
	if s.level.Level() != slog.LevelInfo || !reflect.DeepEqual(a.running(), s.config) {
		t.Errorf("%s, %+v", s.level.Level(), a.running())
	}
	if _, err := a.Status(t.Context(), as(admin)); err != nil {
		t.Errorf("the administrator from before: %v", err)
	}
}

func TestAnAgentIsAskedWhileItReloads(t *testing.T) {
	s := surround(t)
	a := s.start(t)
	var asking sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 2 {
		asking.Go(func() {
			for ctx.Err() == nil {
				if _, err := a.Status(t.Context(), as(admin)); err != nil {
					t.Error(err)
				}
			}
		})
		asking.Go(func() {
			for ctx.Err() == nil {
				if _, err := a.Reload(t.Context(), s.config); err != nil {
					t.Error(err)
				}
			}
		})
	}
	other := s.config
	other.Administrators = append([]string{nobody.String()}, other.Administrators...)
	for range 50 {
		if _, err := a.Reload(t.Context(), other); err != nil {
			t.Error(err)
		}
	}
	cancel()
	asking.Wait()
}

func TestTheLoggerIsWhatTheConfigurationSays(t *testing.T) {
	for _, c := range []struct {
		config   LogConfig
		terminal bool
		json     bool
		level    slog.Level
	}{
		{LogConfig{"info", "auto"}, false, true, slog.LevelInfo},
		{LogConfig{"debug", "auto"}, true, false, slog.LevelDebug},
		{LogConfig{"warn", "json"}, true, true, slog.LevelWarn},
		{LogConfig{"error", "text"}, false, false, slog.LevelError},
	} {
		file, err := os.CreateTemp(t.TempDir(), "")
		check(t, err)
		logger, level := NewLogger(c.config, file, c.terminal)
		logger.Log(t.Context(), c.level, "said")
		logger.Log(t.Context(), c.level-1, "not said")
		check(t, file.Close())
		text, err := os.ReadFile(file.Name())
		check(t, err)
		if level.Level() != c.level || strings.HasPrefix(string(text), "{") != c.json || strings.Count(string(text), "\n") != 1 {
			t.Errorf("%+v: %s", c, text)
		}
	}
}
