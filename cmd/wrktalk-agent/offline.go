package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// rollbackOffline is `wrktalk-agent rollback --offline`: it does by hand what the
// fetcher does with a row, and leaves the rest to the runner.
func (a *app) rollbackOffline(args []string, envFile string, wait bool) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	version := ""
	if len(args) > 0 {
		version = args[0]
	}
	release, needsEnv, err := offlineRelease(cfg, version)
	if err != nil {
		return err
	}
	env, err := optionalFile(envFile)
	if err != nil {
		return err
	}
	switch {
	case env != nil && cfg.Agent.DeploymentType != task.DeploymentDocker:
		return usagef("--env is for Compose releases: Helm keeps the values of each revision")
	case env == nil && len(needsEnv) > 0:
		return usagef("release %s was deployed with an env, which is kept in the database alone: give --env FILE with %s",
			release.Version, strings.Join(needsEnv, ", "))
	}
	if env != nil {
		if missing := notSet(*env, needsEnv); len(missing) > 0 {
			fmt.Fprintf(a.stderr, "wrktalk-agent %s: warning: %s does not seem to set %s, with which release %s was deployed: without, the rollback is refused\n",
				a.command.name, envFile, strings.Join(missing, ", "), release.Version)
		}
	}
	dir, err := openStaging(cfg.Staging.Dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if err := ownedByUs(cfg.Staging.Dir); err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	id, err := publishOffline(dir, release, env)
	if err != nil {
		return err
	}
	// It is asked for whatever this says.
	held, heldErr := dir.Held(staging.Runner)
	if a.output != "json" {
		what := "the previous release"
		if release.Version != "" {
			what = "release " + release.Version
		}
		fmt.Fprintf(a.stdout, "asked the runner to roll back to %s without the database: task %s\n", what, id)
		if heldErr == nil && !held {
			fmt.Fprintln(a.stdout, "no runner is running here: it does so when it starts (wrktalk-agent run)")
		}
	}
	if wait {
		return a.followOffline(ctx, cfg, id)
	}
	if a.output == "json" {
		return a.printJSON(map[string]any{"id": id, "offline": true, "release_version": release.Version})
	}
	return nil
}

// notSet returns which of names no line of the .env text env seems to set. It
// reads no value, so that a text it does not understand does no harm.
func notSet(env string, names []string) (missing []string) {
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

// offlineRelease finds the release to go back to among those kept on this host,
// and the names of the variables it was deployed with. For Helm, the cluster's
// own records tell: its zero value is the release before.
func offlineRelease(cfg *config.Config, version string) (staging.Release, []string, error) {
	chart := cfg.Agent.DeploymentType.ChartType()
	if cfg.Agent.DeploymentType != task.DeploymentDocker {
		return staging.Release{Version: version, ChartType: chart}, nil, nil
	}
	history, err := deployment.ReadHistory(cfg.Compose.WorkingDir)
	if err != nil {
		return staging.Release{}, nil, err
	}
	kept := func(s deployment.Served) bool {
		info, err := os.Stat(filepath.Join(cfg.Compose.WorkingDir, deployment.ReleasesDir, s.Bundle()))
		return err == nil && info.IsDir()
	}
	i := deployment.RollbackTarget(history, deployment.Served.Bundle,
		func(s deployment.Served) bool { return s.Kind == task.KindRollback }, kept)
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
		known := "nothing is"
		if len(names) > 0 {
			known = strings.Join(names, ", ")
		}
		if version != "" {
			return staging.Release{}, nil, fmt.Errorf("release %s is not kept in %s: %s", version, cfg.Compose.WorkingDir, known)
		}
		return staging.Release{}, nil, fmt.Errorf("no release to roll back to is kept in %s: %s; name one of those to bring it back", cfg.Compose.WorkingDir, known)
	}
	s := history[i]
	return staging.Release{ArtifactID: s.ArtifactID, Version: s.Version, ChartType: chart, SHA256: s.SHA256}, s.EnvNames, nil
}

// ownedByUs refuses to put files into the staging directory that the runner
// would not take for its own.
func ownedByUs(path string) error {
	info, err := os.Stat(path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("staging directory %s belongs to uid %d: run this as that user, for example with sudo -u '#%d'", path, st.Uid, st.Uid)
	}
	return nil
}

// publishOffline hands the rollback to the runner.
func publishOffline(dir *staging.Dir, release staging.Release, env *string) (id task.ID, err error) {
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
			err = errors.Join(err, d.Discard())
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

// followOffline shows the phases of a task that has no row yet until it has an
// outcome, and fails if the task did.
func (a *app) followOffline(ctx context.Context, cfg *config.Config, id task.ID) error {
	f := a.follower(nil, cfg, id)
	defer f.clear()
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for {
		f.events()
		o, err := localOutcome(cfg.Staging.Dir, id)
		switch {
		case err == nil:
			f.events()
			f.clear()
			if a.output == "json" {
				err = a.printJSON(o)
			} else {
				fmt.Fprintf(a.stdout, "%s; recorded and mailed when the database is there\n", outcomeText(o))
			}
			if err == nil && !o.Succeeded {
				err = errSilent
			}
			return err
		case errors.Is(err, errShredded):
			f.clear()
			return a.endOfOffline(ctx, cfg, id)
		case !errors.Is(err, errNoOutcome):
			return err
		}
		f.draw()
		select {
		case <-ctx.Done():
			f.clear()
			return fmt.Errorf("stopped following task %s; it goes on: see wrktalk-agent logs %s", id, id)
		case <-tick.C:
		}
	}
}

// endOfOffline tells from the database how a task ended whose directory went
// before its outcome was seen: then it is recorded, and its mails are settled.
func (a *app) endOfOffline(ctx context.Context, cfg *config.Config, id task.ID) error {
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	row, err := db.Task(ctx, id)
	if err != nil {
		return fmt.Errorf("task %s has ended, and how is not known here: %w", id, err)
	}
	if a.output == "json" {
		err = a.printJSON(row)
	} else {
		fmt.Fprintln(a.stdout, verdict(row))
	}
	if err == nil && row.Status == task.StatusFailed {
		err = errSilent
	}
	return err
}

// errNoOutcome means that a task has not ended yet.
var errNoOutcome = errors.New("there is no outcome yet")

// localOutcome returns the outcome of a task in the staging directory at path;
// errNoOutcome as long as there is none, errShredded when its directory is gone.
func localOutcome(path string, id task.ID) (task.Outcome, error) {
	dir, err := staging.Open(path, staging.Reader)
	if err != nil {
		return task.Outcome{}, err
	}
	defer dir.Close()
	t, err := dir.Find(id)
	if errors.Is(err, fs.ErrNotExist) {
		return task.Outcome{}, errShredded
	}
	if err != nil {
		return task.Outcome{}, err
	}
	o, err := t.Outcome()
	switch {
	case !errors.Is(err, fs.ErrNotExist):
		return o, err
	case t.State == staging.Quarantine:
		return o, fmt.Errorf("task directory %s was set aside: see wrktalk-agent inspect %s", t.Path(), t.Name)
	}
	return o, errNoOutcome
}
