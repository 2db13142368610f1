package config

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path/filepath"
)

// snapshotVersion changes when a reader of one version could misunderstand a
// snapshot of another.
const snapshotVersion = 1

// maxSnapshot is the largest snapshot, in bytes, its newline included.
const maxSnapshot = 1 << 20

// snapshot is what a Config is made of. Values are bytes, base64 in JSON: a
// password need not be valid UTF-8.
type snapshot struct {
	Version    int               `json:"version"`
	StateDir   string            `json:"state_dir"`
	RuntimeDir string            `json:"runtime_dir"`
	File       string            `json:"file,omitempty"`
	Warnings   []string          `json:"warnings,omitempty"`
	Settings   []snapshotSetting `json:"settings"`
}

type snapshotSetting struct {
	Key    string `json:"key"`
	Value  []byte `json:"value,omitempty"`
	Source string `json:"source"`
}

// Snapshot returns the configuration as one line of JSON, SECRETS INCLUDED. It
// is for the pipe to a child process, whose environment holds none of it; never
// for a file, an argument, a variable or a log.
func (c *Config) Snapshot() ([]byte, error) {
	s := snapshot{
		Version: snapshotVersion, StateDir: c.StateDir, RuntimeDir: c.RuntimeDir,
		File: c.File, Warnings: c.warnings,
	}
	for i, k := range keys {
		e := c.entries[i]
		s.Settings = append(s.Settings, snapshotSetting{k.name, []byte(e.text.Reveal()), e.source})
	}
	line, err := json.Marshal(s)
	if err != nil {
		return nil, errors.New("encode configuration snapshot")
	}
	if line = append(line, '\n'); len(line) > maxSnapshot {
		return nil, fmt.Errorf("encode configuration snapshot: %d bytes are more than %d", len(line), maxSnapshot)
	}
	return line, nil
}

// LoadSnapshot returns the Config whose Snapshot r delivers. It returns when it
// has read the line, so r may stay open; what follows the newline may be lost.
func LoadSnapshot(r io.Reader) (*Config, error) {
	line, err := bufio.NewReader(io.LimitReader(r, maxSnapshot)).ReadBytes('\n')
	if errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("read configuration snapshot: no complete line within %d bytes", maxSnapshot)
	}
	if err != nil {
		return nil, fmt.Errorf("read configuration snapshot: %w", err)
	}
	var version struct {
		Version int `json:"version"`
	}
	// The decoder's errors may quote what they stumble over, so they end here.
	if json.Unmarshal(line, &version) != nil {
		return nil, errors.New("read configuration snapshot: not JSON")
	}
	if version.Version != snapshotVersion {
		return nil, fmt.Errorf("read configuration snapshot: version %d, want %d: restart the agent", version.Version, snapshotVersion)
	}
	var s snapshot
	decoder := json.NewDecoder(bytes.NewReader(line))
	decoder.DisallowUnknownFields()
	if decoder.Decode(&s) != nil {
		return nil, errors.New("read configuration snapshot: malformed")
	}
	if !filepath.IsAbs(s.StateDir) || !filepath.IsAbs(s.RuntimeDir) {
		return nil, errors.New("read configuration snapshot: its directories are not absolute")
	}

	c := &Config{
		StateDir: s.StateDir, RuntimeDir: s.RuntimeDir, File: s.File, warnings: s.Warnings,
		entries: make([]entry, len(keys)),
	}
	if len(s.Settings) != len(keys) {
		return nil, fmt.Errorf("read configuration snapshot: %d settings, want %d: restart the agent", len(s.Settings), len(keys))
	}
	for i, setting := range s.Settings {
		if setting.Key != keys[i].name {
			return nil, fmt.Errorf("read configuration snapshot: %q in the place of %s: restart the agent", setting.Key, keys[i].name)
		}
		c.entries[i] = entry{newSecret(string(setting.Value)), setting.Source}
	}
	if problems := c.resolve(); len(problems) > 0 {
		return nil, fmt.Errorf("read configuration snapshot: %w", errors.Join(problems...))
	}
	return c, nil
}
