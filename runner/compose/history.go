package compose

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// served is what the history says about a release that came up just now.
func (r *run) served(rel deployment.Release) deployment.Served {
	return deployment.Served{
		At: time.Now().UTC(), TaskID: r.job.TaskID, Kind: r.job.Kind,
		ArtifactID: rel.ArtifactID, Version: rel.Version, SHA256: rel.SHA256,
		EnvNames: slices.Sorted(maps.Keys(r.env.values)),
	}
}

// remember adds an entry to the history. A task that came up twice, since its
// first end could not be reported, is one entry.
func (s *store) remember(now deployment.Served) error {
	history, err := deployment.ReadHistory(s.root.Name())
	if err != nil {
		history = nil // nobody can use it; a new one helps from here on
	}
	if n := len(history); n > 0 && history[n-1].TaskID == now.TaskID {
		history = history[:n-1]
	}
	history = append(history, now)
	history = history[max(0, len(history)-deployment.MaxHistory):]
	data, err := json.MarshalIndent(history, "", "  ")
	if err != nil {
		return fmt.Errorf("keep what served: %w", err)
	}
	if err := durable.WriteFile(s.root, deployment.HistoryFile, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep what served: %w", err)
	}
	return nil
}

// uncovered refuses a kept release whose env is not the one it had: without the
// database a person brought it, and a variable that is missing would be empty.
func (r *run) uncovered() error {
	if r.job.Release.PayloadDir != "" || r.envErr != nil {
		return nil
	}
	history, err := deployment.ReadHistory(r.job.Compose.WorkingDir)
	if err != nil {
		return err
	}
	for _, s := range slices.Backward(history) {
		if s.Bundle() != bundleName(r.job.Release) {
			continue
		}
		missing := slices.DeleteFunc(slices.Clone(s.EnvNames), func(name string) bool {
			_, ok := r.env.values[name]
			return ok
		})
		if len(missing) > 0 {
			return fmt.Errorf("the env given lacks %s, which release %s was deployed with: complete the file of --env", strings.Join(missing, ", "), s.Version)
		}
		return nil
	}
	return nil
}
