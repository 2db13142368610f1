package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// followEvery is how often the staging directory is looked at while following a
// task, askEvery how often the database is.
const (
	followEvery = 100 * time.Millisecond
	askEvery    = 300 * time.Millisecond
)

// follow shows a task's phases until it has ended, and fails if the task did.
// On a terminal the current phase is shown with its age, elsewhere each event
// is a line.
func (a *app) follow(ctx context.Context, db *taskdb.DB, cfg *config.Config, id task.ID, version string) error {
	f := a.follower(db, cfg, id)
	f.line(fmt.Sprintf("task %s: %s", id, version))
	row, err := f.run(ctx)
	f.clear()
	if err != nil {
		return err
	}
	if a.output == "json" {
		if err := a.printJSON(row); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(a.stdout, verdict(row))
	}
	if row.Status == task.StatusFailed {
		return errSilent
	}
	return nil
}

// verdict says in words how a task ended.
func verdict(t taskdb.TaskRow) string {
	took := ""
	if t.PickedUpAt != nil && t.CompletedAt != nil {
		took = fmt.Sprintf(" in %s", t.CompletedAt.Sub(*t.PickedUpAt).Round(10*time.Millisecond))
	}
	text := fmt.Sprintf("%s of %s %s%s", t.Kind, orDash(versionOf(t)), t.Status, took)
	if t.Status == task.StatusFailed {
		text += ": " + t.ErrorMessage
	}
	return text
}

// versionOf returns the release a task is about: the one it names, or the one
// that its result says it came to.
func versionOf(t taskdb.TaskRow) string {
	if t.ReleaseVersion != "" {
		return t.ReleaseVersion
	}
	var result struct {
		Version string `json:"release_version"`
	}
	if json.Unmarshal(t.Result, &result) != nil {
		return ""
	}
	return result.Version
}

// follower shows one task.
type follower struct {
	db      *taskdb.DB
	cfg     *config.Config
	id      task.ID
	started time.Time
	out     io.Writer
	live    bool // rewrite the last line

	seen    int        // events shown
	last    task.Event // the last of them
	waiting string     // why nothing happens yet, as said
	drawn   bool       // a live line stands
}

// follower returns one that shows id to a person, or nothing to a program.
func (a *app) follower(db *taskdb.DB, cfg *config.Config, id task.ID) *follower {
	f := &follower{db: db, cfg: cfg, id: id, started: time.Now(), out: a.stdout, live: isTerminal(a.stdout)}
	if a.output == "json" {
		f.out, f.live = io.Discard, false
	}
	return f
}

func (f *follower) run(ctx context.Context) (taskdb.TaskRow, error) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var asked time.Time
	for {
		f.events()
		if time.Since(asked) >= askEvery {
			row, err := f.db.Task(ctx, f.id)
			switch {
			case ctx.Err() != nil:
			case err != nil && !taskdb.Transient(err):
				return row, err
			case err == nil && row.Status.Final():
				f.events()
				return row, nil
			case err == nil && row.Status == task.StatusPending:
				f.wait(ctx, row)
			}
			asked = time.Now()
		}
		f.draw()
		select {
		case <-ctx.Done():
			f.clear()
			return taskdb.TaskRow{}, fmt.Errorf("stopped following task %s; it goes on: see wrktalk-agent status", f.id)
		case <-tick.C:
		}
	}
}

// events shows what is new in the task's timeline, if this host's staging
// directory has it and may be read; else the database alone tells.
func (f *follower) events() {
	events, err := localEvents(f.cfg.Staging.Dir, f.id)
	if err != nil || len(events) <= f.seen {
		return
	}
	for _, e := range events[f.seen:] {
		f.line(fmt.Sprintf("%s  %-11s  %s", e.Time.Local().Format("15:04:05.0"), e.Phase, e.Text))
		f.last = e
	}
	f.seen = len(events)
}

// localEvents returns the timeline of a task in the staging directory at path.
func localEvents(path string, id task.ID) ([]task.Event, error) {
	dir, err := staging.Open(path, staging.Reader)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	t, err := dir.Find(id)
	if err != nil {
		return nil, err
	}
	return t.Events()
}

// wait says once why a pending task is not picked up, when that takes longer
// than it should.
func (f *follower) wait(ctx context.Context, row taskdb.TaskRow) {
	if row.DueIn <= 0 && time.Since(f.started) < 2*time.Second {
		return
	}
	s, err := f.db.Status(ctx, target(f.cfg))
	if err != nil {
		return
	}
	if why := whyWaiting(row, s, f.cfg); why != f.waiting {
		f.waiting = why
		f.line(why)
	}
}

// whyWaiting explains why a pending task is not running.
func whyWaiting(row taskdb.TaskRow, s *taskdb.Status, cfg *config.Config) string {
	switch {
	case row.DueIn > 0:
		return fmt.Sprintf("waiting until %s", row.ExecuteAfter.Local().Format("2006-01-02 15:04:05 MST"))
	case len(s.InProgress) > 0:
		return fmt.Sprintf("waiting for task %s, which is in progress", s.InProgress[0].ID)
	case s.LastPoll == nil:
		return "waiting: no agent has ever asked this database for tasks; is wrktalk-agent run running?"
	case s.LastPollAge > 2*cfg.Agent.PollInterval:
		return fmt.Sprintf("waiting: no agent has asked for tasks for %s; is wrktalk-agent run running?", s.LastPollAge.Round(time.Second))
	default:
		return "waiting for the agent to pick the task up"
	}
}

// line prints one line that stays.
func (f *follower) line(text string) {
	f.clear()
	fmt.Fprintln(f.out, text)
}

// draw rewrites the live line: the current phase and how long it has been on.
func (f *follower) draw() {
	if !f.live {
		return
	}
	phase, since := "waiting", f.started
	if f.seen > 0 {
		phase, since = string(f.last.Phase), f.last.Time
	}
	spin := `|/-\`
	elapsed := time.Since(since)
	fmt.Fprintf(f.out, "\r\x1b[K%c %s %s", spin[int(elapsed/followEvery)%len(spin)], phase, elapsed.Round(100*time.Millisecond))
	f.drawn = true
}

// clear removes the live line.
func (f *follower) clear() {
	if f.drawn {
		fmt.Fprint(f.out, "\r\x1b[K")
		f.drawn = false
	}
}

func orDash(s string) string {
	if strings.TrimSpace(s) == "" {
		return "-"
	}
	return s
}
