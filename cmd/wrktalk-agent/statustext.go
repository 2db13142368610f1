package main

import (
	"encoding/json"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// printStatus shows a status to a person.
func printStatus(b *strings.Builder, r *operator.Status, cfg *config.Config) {
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(key, format string, args ...any) { fmt.Fprintf(tw, "%s\t%s\n", key, fmt.Sprintf(format, args...)) }

	row("Target", "%s, database %s", deploymentOf(cfg).description, cfg.DB.Address())
	row("Serving", "%s", describe(r.Current, "no release is flagged current"))
	row("Rollback to", "%s", describe(r.Previous, "no release is flagged previous"))
	switch {
	case r.LastPoll == nil:
		row("Agent", "no agent has ever asked this database for tasks; start wrktalk-agent run")
	case r.Silent:
		row("Agent", "no agent has asked for tasks for %s; is wrktalk-agent run running?", r.LastPollAge.Round(time.Second))
	default:
		row("Agent", "asks for tasks (last %s ago)", r.LastPollAge.Round(time.Second))
	}
	row("Here", "%s", describeComponents(r.Components, r.Running, cfg))
	if r.Maintenance {
		row("Maintenance", "on")
	}
	switch {
	case r.Pending == 0:
		row("Queue", "empty")
	case r.NextDue == nil || *r.NextDue > 0:
		row("Queue", "%d pending, the next one is due %s", r.Pending, describeDue(r.NextDue))
	case len(r.InProgress) > 0:
		row("Queue", "%d pending; the one in progress comes first", r.Pending)
	default:
		row("Queue", "%d pending, due now", r.Pending)
	}
	for _, q := range r.Queue {
		row("", "%s of %s, task %s: %s", q.Kind, operator.OrDash(q.ReleaseVersion), q.ID, q.Why)
	}
	if more := r.Pending - len(r.Queue); more > 0 {
		row("", "and %d more", more)
	}
	if r.OtherPending > 0 {
		row("Not for us", "%s", describeOthers(r))
	}
	for _, f := range r.InProgress {
		row("In progress", "%s of %s, task %s%s", f.Kind, operator.OrDash(f.ReleaseVersion), f.ID, describePhase(f))
	}
	for _, u := range r.Unrecorded {
		others := "other tasks go on"
		if u.Blocks {
			others = "no other task begins before"
		}
		row("Not recorded", "the outcome of task %s, which the database refuses (%s); tried again at %s, %s; mend it, or wrktalk-agent forget %[1]s",
			u.TaskID, u.Reason, operator.Clock(u.NextTry), others)
	}
	if r.Mail != nil {
		row("Mail", "%s", describeMail(r.Mail))
	}
	if n := r.Staging[staging.Quarantine]; n > 0 {
		row("Quarantine", "%d task(s) set aside in %s: reason.txt there says why", n, cfg.Staging.Dir)
	}
	tw.Flush()
	if len(r.Recent) == 0 {
		return
	}
	b.WriteString("\nLast outcomes\n")
	ids := make([]task.ID, 0, len(r.Recent))
	for _, t := range r.Recent {
		ids = append(ids, t.ID)
	}
	short := operator.ShortIDs(ids)
	for _, t := range r.Recent {
		when := "-"
		if t.CompletedAt != nil {
			when = t.CompletedAt.Local().Format("2006-01-02 15:04:05")
		}
		fmt.Fprintf(tw, "  %s\t%s\t%s\n", when, short[t.ID], operator.RowText(t))
	}
	tw.Flush()
}

func describe(r *operator.Release, none string) string {
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

func describePhase(f operator.InProgressTask) string {
	switch {
	case f.Phase != nil:
		return fmt.Sprintf(": %s, %s (for %s)", f.Phase.Phase, f.Phase.Text, time.Since(f.Phase.Time).Round(time.Second))
	case f.HeartbeatAge != nil:
		return fmt.Sprintf("; last heard of %s ago", f.HeartbeatAge.Round(time.Second))
	default:
		return "; never heard of"
	}
}

func describeMail(m *operator.MailStatus) string {
	if m.LastError == "" {
		return fmt.Sprintf("%d to be sent", m.Pending)
	}
	return fmt.Sprintf("%d to be sent, the next try at %s: %s", m.Pending, m.NextTry.Local().Format("15:04:05"), m.LastError)
}

// describeOthers says that tasks wait which no agent of this type takes.
func describeOthers(r *operator.Status) string {
	n, what := r.OtherDue, "due"
	if n == 0 {
		n, what = r.OtherPending, "pending"
	}
	own, chart := platform.Of(r.DeploymentType), func(p platform.Platform) string { return string(p.Chart) }
	tasks, are := "tasks", "are"
	if n == 1 {
		tasks, are = "task", "is"
	}
	return fmt.Sprintf("%d %s %s %s for %s agents; this agent deploys %s", n, what, tasks, are,
		platform.Join(own.Others(), " or ", chart), own.Chart)
}

// describeComponents says what the supervisor on this host reports, or else
// which components hold the staging directory.
func describeComponents(raw json.RawMessage, running map[staging.Role]bool, cfg *config.Config) string {
	var list []struct {
		Name      string `json:"name"`
		State     string `json:"state"`
		Ready     bool   `json:"ready"`
		Reason    string `json:"reason"`
		CrashLoop bool   `json:"crash_loop"`
	}
	if raw == nil || json.Unmarshal(raw, &list) != nil {
		return describeLocks(running, cfg)
	}
	var problems []string
	for _, c := range list {
		switch {
		case c.CrashLoop:
			problems = append(problems, fmt.Sprintf("%s keeps dying: %s", c.Name, c.Reason))
		case !c.Ready:
			problems = append(problems, fmt.Sprintf("%s is not ready (%s): %s", c.Name, c.State, operator.OrDash(c.Reason)))
		}
	}
	if len(problems) > 0 {
		return strings.Join(problems, "; ")
	}
	return "fetcher, runner and notifier are ready"
}

// describeLocks says which components run, when no supervisor answers.
func describeLocks(running map[staging.Role]bool, cfg *config.Config) string {
	if running == nil {
		return "no supervisor of this configuration answers, and " + cfg.Staging.Dir + " cannot be looked at"
	}
	var on, off []string
	for _, role := range []staging.Role{staging.Fetcher, staging.Runner, staging.Notifier} {
		if running[role] {
			on = append(on, string(role))
		} else {
			off = append(off, string(role))
		}
	}
	switch {
	case len(on) == 0:
		return "no component of this configuration is running on this host"
	case len(off) == 0:
		return "fetcher, runner and notifier are running; no supervisor answers on http.listen"
	default:
		return fmt.Sprintf("running: %s; not running: %s", strings.Join(on, ", "), strings.Join(off, ", "))
	}
}
