package compose

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// historyEntry is what the history says about a release that came up just now.
func (b *backend) historyEntry(rel protocol.Release) protocol.HistoryEntry {
	return protocol.HistoryEntry{
		At: time.Now().UTC(), TaskID: b.job.TaskID, Kind: b.job.Kind,
		ArtifactID: rel.ArtifactID, Version: rel.Version, SHA256: rel.SHA256,
		EnvNames: slices.Sorted(maps.Keys(b.env.values)),
	}
}

// appendHistory adds an entry to the history. A task that came up twice, since its
// first end could not be reported, is one entry.
func (s *store) appendHistory(now protocol.HistoryEntry) error {
	history, err := protocol.ReadHistory(s.root.Name())
	if err != nil {
		history = nil // nobody can use it; a new one helps from here on
	}
	if n := len(history); n > 0 && history[n-1].TaskID == now.TaskID {
		history = history[:n-1]
	}
	history = append(history, now)
	history = history[max(0, len(history)-protocol.MaxHistory):]
	data, err := json.MarshalIndent(history, "", "  ")
	if err != nil {
		return fmt.Errorf("keep what served: %w", err)
	}
	if err := durable.WriteFile(s.root, protocol.HistoryFile, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep what served: %w", err)
	}
	return nil
}

// checkEnvNames refuses a kept release whose env is not the one it had: without the
// database a person brought it, and a variable that is missing would be empty.
func (b *backend) checkEnvNames() error {
	if b.job.Release.PayloadDir != "" || b.envErr != nil {
		return nil
	}
	history, err := protocol.ReadHistory(b.job.Compose.WorkingDir)
	if err != nil {
		return err
	}
	for _, s := range slices.Backward(history) {
		if s.Bundle() != b.job.Release.Bundle() {
			continue
		}
		missing := slices.DeleteFunc(slices.Clone(s.EnvNames), func(name string) bool {
			_, ok := b.env.values[name]
			return ok
		})
		if len(missing) > 0 {
			return fmt.Errorf("the env given lacks %s, which release %s was deployed with: complete the file of --env", strings.Join(missing, ", "), s.Version)
		}
		return nil
	}
	return nil
}
