// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"log/slog"
	"os"
	"strings"
)

// NewLogger makes the logger that the configuration describes, and the level
// that Reload changes. terminal tells whether w is one.
func NewLogger(config LogConfig, w *os.File, terminal bool) (*slog.Logger, *slog.LevelVar) {
	level := new(slog.LevelVar)
	level.Set(config.level())
	options := &slog.HandlerOptions{Level: level}
	if config.Format == "text" || config.Format == "auto" && terminal {
		return slog.New(slog.NewTextHandler(w, options)), level
	}
	return slog.New(slog.NewJSONHandler(w, options)), level
}

func (c LogConfig) level() slog.Level {
	var level slog.Level
	// check allows nothing that this does not know.
	if err := level.UnmarshalText([]byte(strings.ToUpper(c.Level))); err != nil {
		return slog.LevelInfo
	}
	return level
}
