package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// report is what `status --output json` prints.
type report struct {
	DeploymentType task.DeploymentType `json:"deployment_type"`
	Current        *release            `json:"current"`
	Previous       *release            `json:"previous"`
	Maintenance    bool                `json:"maintenance_mode_enabled"`
	LastPoll       *time.Time          `json:"last_agent_poll"`
	Pending        int                 `json:"pending"`
	NextDueSeconds *float64            `json:"next_due_seconds"`
	// Queue is the first ten pending tasks, in the order in which they are
	// taken. OtherPending counts those that wait for agents of the other
	// deployment type, OtherDue those of them that are due.
	Queue        []queued         `json:"queue"`
	OtherPending int              `json:"other_pending"`
	OtherDue     int              `json:"other_due"`
	InProgress   []flight         `json:"in_progress"`
	Recent       []taskdb.TaskRow `json:"recent"`
	// Components is what the supervisor on this host says; nil when none
	// answers. Running is which components hold this configuration's staging
	// directory, and Staging counts the directories per state; both nil when it
	// cannot be read.
	Components json.RawMessage       `json:"components"`
	Running    map[staging.Role]bool `json:"running"`
	Staging    map[staging.State]int `json:"staging"`
	// Mail is what lies here to be sent; nil when nothing does.
	Mail *mailReport `json:"mail"`
}

// mailReport is about mails that are still to be sent.
type mailReport struct {
	Pending   int        `json:"pending"`
	LastError string     `json:"last_error,omitempty"` // of the newest attempt that failed
	NextTry   *time.Time `json:"next_try,omitempty"`   // the earliest
	attempted time.Time  // when LastError came
}

type release struct {
	ArtifactID string     `json:"artifact_id"`
	Version    string     `json:"release_version"`
	AppliedAt  *time.Time `json:"applied_at"`
}

// queued is a task that waits, and why it does.
type queued struct {
	taskdb.TaskRow
	Why string `json:"why"`
}

// flight is a task in progress, with its phase if it is on this host or the
// agent's own schema has it.
type flight struct {
	taskdb.TaskRow
	Phase *task.Event `json:"phase,omitempty"`
}

// runStatus is `wrktalk-agent status`.
func runStatus(a *app, args []string) error {
	fs := a.flags()
	a.outputFlag(fs)
	watch := fs.Bool("watch", false, "show it again whenever something changes, until interrupted")
	if _, err := a.parse(fs, args, 0, 0); err != nil {
		return err
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	db, err := a.database(ctx, cfg)
	if err != nil {
		return usageError{err}
	}
	defer db.Close()
	if !*watch {
		_, err := a.status(ctx, db, cfg, "")
		return err
	}
	return a.watchStatus(ctx, db, cfg)
}

// watchStatus shows the state whenever it changes, until ctx ends. It outlives
// a database that is away for a while.
func (a *app) watchStatus(ctx context.Context, db *taskdb.DB, cfg *config.Config) (err error) {
	shown, lost := "", false
	for {
		switch shown, err = a.status(ctx, db, cfg, shown); {
		case err == nil:
			lost = false
		case ctx.Err() != nil:
		case !taskdb.Transient(err):
			return err
		case !lost:
			fmt.Fprintf(a.stderr, "wrktalk-agent %s: %s; trying again\n", a.command.name, explain(err))
			// What comes next is shown even if it reads like what was shown before.
			shown, lost = " ", true
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(500 * time.Millisecond):
		}
	}
}

// status prints the state once, unless it reads like shown, and returns it as
// printed.
func (a *app) status(ctx context.Context, db *taskdb.DB, cfg *config.Config, shown string) (string, error) {
	r, s, err := gather(ctx, db, cfg)
	if err != nil {
		return shown, err
	}
	var b strings.Builder
	if a.output == "json" {
		enc := json.NewEncoder(&b)
		enc.SetIndent("", "  ")
		if err := enc.Encode(r); err != nil {
			return shown, err
		}
	} else {
		printStatus(&b, r, s, cfg)
	}
	if b.String() == shown {
		return shown, nil
	}
	if shown != "" && isTerminal(a.stdout) {
		fmt.Fprint(a.stdout, "\x1b[H\x1b[2J")
	}
	_, err = fmt.Fprint(a.stdout, b.String())
	return b.String(), err
}

// gather collects what the database, the supervisor and the staging directory
// say. Only the database must answer.
func gather(ctx context.Context, db *taskdb.DB, cfg *config.Config) (*report, *taskdb.Status, error) {
	s, err := db.Status(ctx, target(cfg))
	if err != nil {
		return nil, nil, err
	}
	r := &report{
		DeploymentType: cfg.Agent.DeploymentType, Current: releaseOf(s.Current), Previous: releaseOf(s.Previous),
		Maintenance: s.Maintenance, LastPoll: s.LastPoll, Pending: s.Pending, Recent: s.Recent,
		Queue: []queued{}, OtherPending: s.OtherPending, OtherDue: s.OtherDue, InProgress: []flight{},
	}
	if s.NextDue != nil {
		due := s.NextDue.Seconds()
		r.NextDueSeconds = &due
	}
	for _, t := range s.Queue {
		r.Queue = append(r.Queue, queued{t, whyWaiting(t, s, cfg)})
	}
	for _, t := range s.InProgress {
		phase, err := lastEvent(ctx, db, cfg, t.ID)
		if err != nil {
			return nil, nil, err
		}
		r.InProgress = append(r.InProgress, flight{t, phase})
	}
	r.Components = componentHealth(ctx, cfg)
	lookAround(cfg.Staging.Dir, r)
	return r, s, nil
}

// lastEvent returns what was last said about a task, by this host's staging
// directory or else by the agent's own schema; nil when neither has it.
func lastEvent(ctx context.Context, db *taskdb.DB, cfg *config.Config, id task.ID) (*task.Event, error) {
	if events, err := localEvents(cfg.Staging.Dir, id); err == nil && len(events) > 0 {
		return &events[len(events)-1], nil
	}
	e, err := db.LastEvent(ctx, id)
	if err != nil || e == nil {
		return nil, err
	}
	return &e.Event, nil
}

func releaseOf(a *taskdb.Artifact) *release {
	if a == nil {
		return nil
	}
	return &release{a.ID, a.Version, a.AppliedAt}
}

// local asks for pages of this host, which no proxy has.
var local = &http.Client{Transport: &http.Transport{Proxy: nil, DisableKeepAlives: true}}

// componentHealth asks the supervisor on this host how its components are;
// nil when none answers. One of another configuration is none of ours.
func componentHealth(ctx context.Context, cfg *config.Config) json.RawMessage {
	if cfg.HTTP.Listen == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+cfg.HTTP.Listen+"/readyz", nil)
	if err != nil {
		return nil
	}
	req.Header.Set("Accept", "application/json")
	res, err := local.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var body struct {
		Staging    string          `json:"staging"`
		Components json.RawMessage `json:"components"`
	}
	if json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&body) != nil || body.Staging != cfg.Staging.Dir {
		return nil
	}
	return body.Components
}

// lookAround finds out which components run on the staging directory at path,
// counts what lies in it, and what mail waits there.
func lookAround(path string, r *report) {
	running := make(map[staging.Role]bool)
	dir, err := staging.Open(path, staging.Reader)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) { // no agent has been here
			r.Running = running
		}
		return
	}
	defer dir.Close()
	for _, h := range holders {
		if running[h.Name], err = dir.Held(h.Name); err != nil {
			return
		}
	}
	counts := make(map[staging.State]int)
	for _, s := range staging.States {
		tasks, err := dir.List(s)
		if err != nil {
			return
		}
		counts[s] = len(tasks)
		if s == staging.Done {
			r.Mail = waitingMail(tasks)
		}
	}
	r.Running, r.Staging = running, counts
}

// waitingMail reads in the ledgers of finished tasks what is still to be sent.
func waitingMail(tasks []*staging.Task) *mailReport {
	m := &mailReport{}
	for _, t := range tasks {
		l, err := notifier.ReadLedger(t)
		if err != nil {
			continue // not planned yet, or dealt with meanwhile
		}
		for _, d := range l.Deliveries {
			if d.State != notifier.StatePending {
				continue
			}
			m.Pending++
			if m.NextTry == nil || d.NextTry.Before(*m.NextTry) {
				m.NextTry = &d.NextTry
			}
			if d.LastError != "" && !d.UpdatedAt.Before(m.attempted) {
				m.LastError, m.attempted = d.LastError, d.UpdatedAt
			}
		}
	}
	if m.Pending == 0 {
		return nil
	}
	return m
}
