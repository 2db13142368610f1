package operator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// RollbackTarget returns the release to go back to without the database, the one
// of the given version or else the one before, and the names of the variables it
// was deployed with. Where bundles are kept, it is one of those in workingDir;
// otherwise the platform's own records tell: without a version, the release that
// is returned names none.
func RollbackTarget(p platform.Platform, workingDir, version string) (staging.Release, []string, error) {
	if !p.KeepsBundles {
		return staging.Release{Version: version, ChartType: p.Chart}, nil, nil
	}
	history, err := protocol.ReadHistory(workingDir)
	if err != nil {
		return staging.Release{}, nil, err
	}
	kept := func(s protocol.HistoryEntry) bool { return protocol.Keeps(workingDir, s.Bundle(), true) }
	i := protocol.RollbackTarget(history, protocol.HistoryEntry.Bundle,
		func(s protocol.HistoryEntry) bool { return s.Kind == task.KindRollback }, kept)
	if version != "" {
		i = len(history) - 1
		for i >= 0 && (history[i].Version != version || !kept(history[i])) {
			i--
		}
	}
	if i < 0 {
		var names []string
		for _, s := range history {
			if kept(s) && !slices.Contains(names, s.Version) {
				names = append(names, s.Version)
			}
		}
		known := strings.Join(names, ", ")
		switch {
		case len(names) == 0:
			return staging.Release{}, nil, fmt.Errorf("no release is kept in %s: without the database there is nothing to roll back to", workingDir)
		case version != "":
			return staging.Release{}, nil, fmt.Errorf("release %s is not kept in %s; these are: %s", version, workingDir, known)
		}
		return staging.Release{}, nil, fmt.Errorf("no release to roll back to is kept in %s, only %s: name one of those to bring it back", workingDir, known)
	}
	s := history[i]
	return staging.Release{ArtifactID: s.ArtifactID, Version: s.Version, ChartType: p.Chart, SHA256: s.SHA256}, s.EnvNames, nil
}

// CheckRollback says in one sentence that there is nothing to go back to, when that is
// certain: a task that is open may change it, and what a platform itself has kept is
// not known here.
func (c *Client) CheckRollback(ctx context.Context) error {
	if p := platform.Of(c.Target.Deployment); !p.KeepsBundles {
		return nil
	}
	chart := c.Target.Chart()
	_, err := c.DB.RollbackTarget(ctx, chart)
	if !errors.Is(err, taskdb.ErrNotFound) {
		return err
	}
	s, err := c.DB.Status(ctx, c.Target)
	switch {
	case err != nil:
		return err
	case s.Pending+len(s.InProgress) > 0:
		return nil
	case s.Current == nil:
		return fmt.Errorf("there is nothing to roll back: no %s release serves yet; see wrktalk-agent deploy", chart)
	case s.Previous != nil:
		return fmt.Errorf("there is no release to roll back to: the previous one, %s, is what the last rollback left behind; name it to bring it back (wrktalk-agent rollback %s)", s.Previous.Version, s.Previous.Version)
	}
	return fmt.Errorf("there is no release to roll back to: %s is the first that serves; name another one that is stored (wrktalk-agent rollback VERSION)", s.Current.Version)
}

// MissingEnv returns which of names no line of the .env text env seems to set.
// It reads no value, so that a text it does not understand does no harm.
func MissingEnv(env string, names []string) (missing []string) {
	set := map[string]bool{}
	for line := range strings.Lines(env) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		if i := strings.IndexAny(line, "=:"); i > 0 {
			set[strings.TrimSpace(line[:i])] = true
		}
	}
	for _, name := range names {
		if !set[name] {
			missing = append(missing, name)
		}
	}
	return missing
}

// checkOwner refuses to put files into the staging directory at path that the
// runner would not take for its own.
func checkOwner(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("staging directory %s belongs to uid %d: run this as that user, for example with sudo -u '#%d'", path, st.Uid, st.Uid)
	}
	return nil
}

// PublishRollback hands a rollback to the runner of this host, as the fetcher
// does with a row. It returns the id of the task, and whether no runner is
// running to carry it out. A nil env is none.
func (c *Client) PublishRollback(release staging.Release, env *string) (id task.ID, noRunner bool, err error) {
	dir, err := OpenStaging(c.StagingDir)
	if err != nil {
		return "", false, err
	}
	defer dir.Close()
	if err := checkOwner(c.StagingDir); err != nil {
		return "", false, err
	}
	id, err = publishRollback(dir, release, env)
	return id, runnerIsDown(dir), err
}

// runnerIsDown reports whether it is certain that no runner works on dir.
func runnerIsDown(dir *staging.Dir) bool {
	held, err := dir.Locked(staging.Runner)
	return err == nil && !held
}

func publishRollback(dir *staging.Dir, release staging.Release, env *string) (id task.ID, err error) {
	now := time.Now().UTC().Truncate(time.Microsecond)
	m := staging.Manifest{
		TaskID: taskdb.NewTaskID(), Kind: task.KindRollback, Offline: true,
		Token:   task.Token(now.Format(time.RFC3339Nano)),
		Release: release, DueAt: now, ClaimedAt: now, StagedAt: now,
	}
	d, err := dir.Create(staging.Name(now, m.Kind, release.Version, m.TaskID))
	if err != nil {
		return "", err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, d.Remove())
		}
	}()
	if env != nil {
		if err := durable.WriteFile(d.Root(), staging.EnvFile, []byte(*env), 0o600); err != nil {
			return "", err
		}
		sum := sha256.Sum256([]byte(*env))
		m.Files = append(m.Files, staging.File{
			Path: staging.EnvFile, Type: staging.TypeFile, Size: int64(len(*env)), Mode: 0o600, SHA256: hex.EncodeToString(sum[:]),
		})
	}
	err = d.Task().Append(task.Event{Time: now, Component: "operator", Phase: task.PhaseReady, Text: "asked for on this host, without the database"})
	if err != nil {
		return "", err
	}
	_, err = d.Publish(m)
	return m.TaskID, err
}
