package protocol

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// HistoryFile is, below Compose.WorkingDir, what served there: a JSON array of
// HistoryEntry, oldest first. It makes a rollback possible while the database is away.
const HistoryFile = "history.json"

// MaxHistory is how many entries HistoryFile holds at most.
const MaxHistory = 100

// HistoryEntry is a release that came up. It carries no secrets.
type HistoryEntry struct {
	At         time.Time `json:"at"`
	TaskID     task.ID   `json:"task_id"`
	Kind       task.Kind `json:"kind"` // of the task that brought it up
	ArtifactID string    `json:"artifact_id"`
	Version    string    `json:"version"`
	SHA256     string    `json:"sha256"`
	// EnvNames are the names, not the values, of what its env held.
	EnvNames []string `json:"env_names,omitempty"`
}

// Bundle returns the name of the directory that keeps the release.
func (e HistoryEntry) Bundle() string { return BundleName(e.Version, e.SHA256) }

// ReadHistory returns what served in the working directory dir, oldest first;
// nothing where nothing was ever brought up.
func ReadHistory(dir string) ([]HistoryEntry, error) {
	data, err := os.ReadFile(filepath.Join(dir, HistoryFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read what served before: %w", err)
	}
	var history []HistoryEntry
	if err := json.Unmarshal(data, &history); err != nil {
		return nil, fmt.Errorf("read what served before: %s: %w", filepath.Join(dir, HistoryFile), err)
	}
	return history, nil
}

// RollbackTarget returns the index in history, oldest first, of what a rollback
// that names no release goes back to, -1 for nothing. It is the newest entry that
// is usable, is not what serves now, and was not left behind by a rollback: that
// is the release which was found bad, and a second rollback must not bring it
// back. The database's own rule, taskdb.RollbackTarget, is the same. Entries of
// one release have the same key; rolledBack tells that a rollback made the entry.
func RollbackTarget[T any](history []T, key func(T) string, rolledBack, usable func(T) bool) int {
	if len(history) == 0 {
		return -1
	}
	seen := map[string]bool{key(history[len(history)-1]): true}
	for i := len(history) - 2; i >= 0; i-- {
		k := key(history[i])
		if seen[k] {
			continue
		}
		seen[k] = true
		if !rolledBack(history[i+1]) && usable(history[i]) {
			return i
		}
	}
	return -1
}
