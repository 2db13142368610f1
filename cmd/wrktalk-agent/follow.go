package main

import (
	"context"
	"encoding/json"
	"errors"
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

	shown   map[shownEvent]bool // events
	last    *task.Event         // the last of them
	after   int64               // of the events in the database, the last that was read
	status  task.Status         // as last read
	waiting string              // why nothing happens yet, as said
	drawn   bool                // a live line stands
}

// shownEvent tells an event from others, wherever it was read: the database
// keeps microseconds.
type shownEvent struct {
	at              int64
	component, text string
	phase           task.Phase
}

// follower returns one that shows id to a person, or nothing to a program.
func (a *app) follower(db *taskdb.DB, cfg *config.Config, id task.ID) *follower {
	f := &follower{
		db: db, cfg: cfg, id: id, started: time.Now(), out: a.stdout, live: isTerminal(a.stdout),
		shown: map[shownEvent]bool{},
	}
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
		here := f.events()
		if time.Since(asked) >= askEvery {
			row, err := f.db.Task(ctx, f.id)
			if err == nil {
				f.status = row.Status
			}
			switch {
			case ctx.Err() != nil:
			case here && errors.Is(err, taskdb.ErrNotFound): // asked for offline: its row comes with its outcome
			case err != nil && !taskdb.Transient(err):
				return row, err
			case err != nil:
			case row.Status == task.StatusPending:
				f.wait(ctx, row)
			case row.Status.Final():
				if !f.events() {
					f.recorded(ctx)
				}
				return row, nil
			case !here:
				f.recorded(ctx)
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

// events shows what is new in the task's timeline, and reports whether this
// host's staging directory has it and may be read.
func (f *follower) events() bool {
	events, err := localEvents(f.cfg.Staging.Dir, f.id)
	if err != nil {
		return false
	}
	for _, e := range events {
		f.show(e)
	}
	return true
}

// recorded shows what is new in the copy of the timeline that the agent's own
// schema has: for tasks of another host or user.
func (f *follower) recorded(ctx context.Context) {
	for {
		events, err := f.db.Events(ctx, f.id, f.after)
		if err != nil || len(events) == 0 {
			return // the next look may succeed; the row tells the end in any case
		}
		for _, e := range events {
			f.show(e.Event)
			f.after = e.Seq
		}
	}
}

func (f *follower) show(e task.Event) {
	key := shownEvent{e.Time.Round(time.Microsecond).UnixMicro(), e.Component, e.Text, e.Phase}
	if f.shown[key] {
		return
	}
	f.shown[key], f.last = true, &e
	f.line(fmt.Sprintf("%s  %-11s  %s", e.Time.Local().Format("15:04:05.0"), e.Phase, e.Text))
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
	if row.ChartType, err = f.db.WaitsFor(ctx, row.ID); err != nil {
		return
	}
	if why := whyWaiting(row, s, f.cfg); why != f.waiting {
		f.waiting = why
		f.line(why)
	}
}

// whyWaiting explains why a pending task is not running; row.ChartType is whose
// task it is.
func whyWaiting(row taskdb.TaskRow, s *taskdb.Status, cfg *config.Config) string {
	own := cfg.Agent.DeploymentType.ChartType()
	switch {
	case row.ChartType == cfg.Agent.DeploymentType.Other().ChartType():
		return fmt.Sprintf("waiting for a %s agent: this agent deploys %s (agent.deployment_type, deployment_config)", row.ChartType, own)
	case row.DueIn > 0 && row.ExecuteAfter == nil:
		return "waiting for ever: its execute_after is infinity"
	case row.DueIn > 0:
		return fmt.Sprintf("waiting until %s", row.ExecuteAfter.Local().Format("2006-01-02 15:04:05 MST"))
	case len(s.InProgress) > 0:
		return whyBlocked(s.InProgress[0], cfg)
	case s.LastPoll == nil:
		return "waiting: no agent has ever asked this database for tasks; is wrktalk-agent run running?"
	case silent(s, cfg):
		return fmt.Sprintf("waiting: no agent has asked for tasks for %s; is wrktalk-agent run running?", s.LastPollAge.Round(time.Second))
	case len(s.Queue) > 0 && s.Queue[0].ID != row.ID:
		return fmt.Sprintf("waiting for task %s, which comes first", s.Queue[0].ID)
	default:
		return "waiting for the agent to pick the task up"
	}
}

// whyBlocked says which task in progress holds others up, and, when its agent
// has not been heard of as it should, until when it may.
func whyBlocked(t taskdb.TaskRow, cfg *config.Config) string {
	text := fmt.Sprintf("waiting for task %s, which is in progress", t.ID)
	if t.HeartbeatAge == nil || *t.HeartbeatAge < 2*cfg.Agent.HeartbeatInterval {
		return text
	}
	age := t.HeartbeatAge.Round(time.Second)
	if left := cfg.Agent.Lease - *t.HeartbeatAge; left > 0 {
		return fmt.Sprintf("%s; its agent has been silent for %s, and its lease ends in %s", text, age, left.Round(time.Second))
	}
	return fmt.Sprintf("%s; its agent has been silent for %s, and its lease has ended: the next agent that asks takes it over", text, age)
}

// silent reports whether no agent asks for tasks as often as it should.
func silent(s *taskdb.Status, cfg *config.Config) bool {
	return s.LastPollAge > 2*cfg.Agent.PollInterval+5*time.Second
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
	switch {
	case f.last != nil:
		phase, since = string(f.last.Phase), f.last.Time
	case f.status == task.StatusInProgress:
		phase = "in progress"
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
