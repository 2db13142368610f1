package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os/signal"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
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
	InProgress     []flight            `json:"in_progress"`
	Recent         []taskdb.TaskRow    `json:"recent"`
	// Components is what the supervisor on this host says; nil when none
	// answers. Staging counts the directories per state; nil when it cannot be
	// read.
	Components json.RawMessage       `json:"components"`
	Staging    map[staging.State]int `json:"staging"`
}

type release struct {
	ArtifactID string     `json:"artifact_id"`
	Version    string     `json:"release_version"`
	AppliedAt  *time.Time `json:"applied_at"`
}

// flight is a task in progress, with its phase if it is on this host.
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
	shown := ""
	for {
		if shown, err = a.status(ctx, db, cfg, shown); err != nil && ctx.Err() == nil {
			return err
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
		InProgress: []flight{},
	}
	if s.NextDue != nil {
		due := s.NextDue.Seconds()
		r.NextDueSeconds = &due
	}
	for _, t := range s.InProgress {
		f := flight{TaskRow: t}
		if events, err := localEvents(cfg.Staging.Dir, t.ID); err == nil && len(events) > 0 {
			f.Phase = &events[len(events)-1]
		}
		r.InProgress = append(r.InProgress, f)
	}
	r.Components = componentHealth(ctx, cfg)
	r.Staging = countStaging(cfg.Staging.Dir)
	return r, s, nil
}

func releaseOf(a *taskdb.Artifact) *release {
	if a == nil {
		return nil
	}
	return &release{a.ID, a.Version, a.AppliedAt}
}

// componentHealth asks the supervisor on this host how its components are.
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
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil
	}
	defer res.Body.Close()
	var body struct {
		Components json.RawMessage `json:"components"`
	}
	if json.NewDecoder(res.Body).Decode(&body) != nil {
		return nil
	}
	return body.Components
}

func countStaging(path string) map[staging.State]int {
	dir, err := staging.Open(path, staging.Reader)
	if err != nil {
		return nil
	}
	defer dir.Close()
	counts := make(map[staging.State]int)
	for _, s := range staging.States {
		tasks, err := dir.List(s)
		if err != nil {
			return nil
		}
		counts[s] = len(tasks)
	}
	return counts
}

func printStatus(b *strings.Builder, r *report, s *taskdb.Status, cfg *config.Config) {
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(key, format string, args ...any) { fmt.Fprintf(tw, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }

	row("Target", "%s, database %s", origin(cfg).Target, cfg.DB.Address())
	row("Serving", "%s", describe(r.Current, "no release is flagged current"))
	row("Rollback to", "%s", describe(r.Previous, "no release is flagged previous"))
	switch {
	case s.LastPoll == nil:
		row("Agent", "no agent has ever asked this database for tasks; start wrktalk-agent run")
	case s.LastPollAge > 2*cfg.Agent.PollInterval+5*time.Second:
		row("Agent", "no agent has asked for tasks for %s; is wrktalk-agent run running?", s.LastPollAge.Round(time.Second))
	default:
		row("Agent", "asks for tasks (last %s ago)", s.LastPollAge.Round(time.Second))
	}
	row("Here", "%s", describeComponents(r.Components))
	if r.Maintenance {
		row("Maintenance", "on")
	}
	switch {
	case s.Pending == 0:
		row("Queue", "empty")
	case s.NextDue == nil || *s.NextDue > 0:
		row("Queue", "%d pending, the next one is due %s", s.Pending, describeDue(s.NextDue))
	case len(r.InProgress) > 0:
		row("Queue", "%d pending; the one in progress comes first", s.Pending)
	default:
		row("Queue", "%d pending, due now", s.Pending)
	}
	for _, f := range r.InProgress {
		row("In progress", "%s of %s, task %s%s", f.Kind, orDash(f.ReleaseVersion), f.ID, describePhase(f))
	}
	if n := r.Staging[staging.Quarantine]; n > 0 {
		row("Quarantine", "%d task(s) set aside in %s: reason.txt there says why", n, cfg.Staging.Dir)
	}
	tw.Flush()
	if len(r.Recent) == 0 {
		return
	}
	b.WriteString("\nLast outcomes\n")
	for _, t := range r.Recent {
		when := "-"
		if t.CompletedAt != nil {
			when = t.CompletedAt.Local().Format("2006-01-02 15:04:05")
		}
		fmt.Fprintf(tw, "  %s\t%s\n", when, verdict(t))
	}
	tw.Flush()
}

func describe(r *release, none string) string {
	switch {
	case r == nil:
		return none
	case r.AppliedAt == nil:
		return r.Version
	default:
		return fmt.Sprintf("%s since %s", r.Version, r.AppliedAt.Local().Format("2006-01-02 15:04:05"))
	}
}

func describeDue(d *time.Duration) string {
	if d == nil {
		return "never"
	}
	return "in " + d.Round(time.Second).String()
}

func describePhase(f flight) string {
	switch {
	case f.Phase != nil:
		return fmt.Sprintf(": %s, %s (for %s)", f.Phase.Phase, f.Phase.Text, time.Since(f.Phase.Time).Round(time.Second))
	case f.HeartbeatAge != nil:
		return fmt.Sprintf("; last heard of %s ago", f.HeartbeatAge.Round(time.Second))
	default:
		return "; never heard of"
	}
}

// describeComponents says what the supervisor on this host reports.
func describeComponents(raw json.RawMessage) string {
	var list []struct {
		Name      string `json:"name"`
		State     string `json:"state"`
		Ready     bool   `json:"ready"`
		Reason    string `json:"reason"`
		CrashLoop bool   `json:"crash_loop"`
	}
	if raw == nil || json.Unmarshal(raw, &list) != nil {
		return "no supervisor answers on this host"
	}
	var errs []error
	for _, c := range list {
		switch {
		case c.CrashLoop:
			errs = append(errs, fmt.Errorf("%s keeps dying: %s", c.Name, c.Reason))
		case !c.Ready:
			errs = append(errs, fmt.Errorf("%s is not ready (%s): %s", c.Name, c.State, orDash(c.Reason)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return "fetcher, runner and notifier are ready"
}
