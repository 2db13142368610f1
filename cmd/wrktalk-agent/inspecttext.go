package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/notifier"
)

// shownEvents is how many events of each task an overview shows.
const shownEvents = 3

// next says who does what with a directory, and when.
func (i *inspector) next(r *taskReport) string {
	running := func(role staging.Role, now, later string) string {
		if i.running[role] {
			return "the " + string(role) + " " + now
		}
		return "nobody: the " + string(role) + " is not running; when it starts it " + later
	}
	switch r.State {
	case staging.Tmp:
		return running(staging.Fetcher, "is staging it",
			"asks the database whether the claim still holds, and stages it anew or shreds it")
	case staging.Ready:
		return running(staging.Runner, "takes it as soon as it is free", "takes it, unless its claim was lost meanwhile")
	case staging.Running:
		later := "confirms the claim and deploys it again"
		switch {
		case r.Outcome != nil:
			later = "records the outcome in the database"
		case r.Attempts >= i.attempts:
			later = fmt.Sprintf("repairs what is half done and records it as failed: %d of %d attempts were made", r.Attempts, i.attempts)
		case r.Cancel != nil:
			later = "restores what served before and records it as cancelled"
		}
		now := "is deploying it"
		switch {
		case r.Outcome != nil:
			now = "is recording the outcome in the database, for as long as that takes"
		case r.Cancel != nil:
			now = "is giving it up, as an operator asked"
		}
		return running(staging.Runner, now, later)
	case staging.Done:
		return running(staging.Notifier, i.nextMail(r.Mail), "goes on with the mail")
	case staging.Trash:
		return running(staging.Notifier, "or the runner is shredding it", "shreds it")
	default:
		return "you: read the reason, look at what serves, then remove the directory; the task itself was ended or is taken up again when its lease runs out"
	}
}

// nextMail says what the notifier does next about a task.
func (i *inspector) nextMail(l *notifier.Ledger) string {
	if l == nil {
		return "finds out whom to tell"
	}
	if l.Settled() {
		if i.keep > 0 {
			return fmt.Sprintf("keeps it: the last %d are kept (staging.keep)", i.keep)
		}
		return "shreds it"
	}
	var first time.Time
	for _, d := range l.Deliveries {
		if d.State == notifier.StatePending && (first.IsZero() || d.NextTry.Before(first)) {
			first = d.NextTry
		}
	}
	if wait := first.Sub(i.now); wait > time.Second {
		return fmt.Sprintf("tries the mail again in %s, at %s", wait.Round(time.Second), clock(first))
	}
	return "is sending the mail"
}

// print shows the inspection to a person: everything about one task, or the
// essential about all.
func (r *inspection) print(w io.Writer, whole bool, now time.Time) error {
	var b strings.Builder
	fmt.Fprintf(&b, "Staging directory %s\n", r.Dir)
	for _, c := range r.Components {
		is := "is not running: nobody holds the lock on"
		if c.Running {
			is = "is running: it holds the lock on"
		}
		fmt.Fprintf(&b, "  %-9s %s %s/\n", c.Name, is, c.State)
	}
	for _, s := range r.States {
		count := "empty"
		if n := len(s.Tasks); n == 1 {
			count = "1 task"
		} else if n > 1 {
			count = fmt.Sprintf("%d tasks", n)
		}
		fmt.Fprintf(&b, "\n%s/  %s (%s)\n", s.State, count, s.Meaning)
		for _, t := range s.Tasks {
			t.print(&b, whole, now)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (t *taskReport) print(b *strings.Builder, whole bool, now time.Time) {
	fmt.Fprintf(b, "\n  %s\n", t.Name)
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(tw, "    %s\t%s\n", key, fmt.Sprintf(format, args...))
	}
	if m := t.Manifest; m != nil {
		row("task", "%s, %s of %s", m.TaskID, m.Kind, orDash(m.Release.Version))
		row("claim", "%s (due %s, claimed %s%s)", m.Token, clock(m.DueAt), clock(m.ClaimedAt), lateText(m.Late))
		if m.Offline {
			row("asked for", "on this host, without the database")
		}
		if m.TakenOver {
			row("taken over", "from an agent whose lease had run out: the release may be half applied")
		}
		if m.Refusal != "" {
			row("refused", "%s", m.Refusal)
		} else if m.Release.SHA256 != "" {
			row("release", "%s, artifact %s, %d bytes, sha256 %.12s", m.Release.ChartType, m.Release.ArtifactID, m.Release.Bytes, m.Release.SHA256)
		}
		if m.Previous != nil {
			row("serves now", "%s, as the database said at the claim", m.Previous.Version)
		}
	}
	row("on disk", "%d files, %d bytes, last changed %s ago", t.Files, t.Bytes, now.Sub(t.Touched).Round(time.Second))
	if len(t.Secrets) > 0 {
		row("secrets", "%s: shredded when the run has an outcome", strings.Join(t.Secrets, ", "))
	}
	if t.Attempts > 0 {
		row("attempts", "%d", t.Attempts)
	}
	if t.Cancel != nil {
		row("cancel", "asked for by an operator: %s", orDash(*t.Cancel))
	}
	if o := t.Outcome; o != nil {
		row("outcome", "%s", outcomeText(*o))
		row("serves", "%s", orDash(o.Serving))
	}
	t.printMail(row)
	if t.Reason != "" {
		row("reason", "%s", t.Reason)
	}
	for _, p := range t.Problems {
		row("problem", "%s", p)
	}
	row("next", "%s", t.Next)
	tw.Flush()
	events := t.Events
	if left := len(events) - shownEvents; !whole && left > 0 {
		events = events[left:]
		fmt.Fprintf(b, "    timeline, the last %d of %d events\n", shownEvents, len(t.Events))
	} else if len(events) > 0 {
		b.WriteString("    timeline\n")
	}
	for _, e := range events {
		fmt.Fprintf(b, "      %s\n", eventText(e))
	}
}

// printMail shows what became of the mail to each recipient.
func (t *taskReport) printMail(row func(key, format string, args ...any)) {
	if t.Mail == nil {
		return
	}
	if t.Mail.Note != "" {
		row("mail", "%s", t.Mail.Note)
	}
	for _, d := range t.Mail.Deliveries {
		text := fmt.Sprintf("%s: %s after %d attempt(s)", d.Address, d.State, d.Attempts)
		if d.State == notifier.StatePending && d.Attempts > 0 {
			text += ", next try " + clock(d.NextTry)
		}
		if d.LastError != "" {
			text += ": " + d.LastError
		}
		row("mail", "%s", text)
	}
}

func lateText(late time.Duration) string {
	if late < time.Second {
		return ""
	}
	return fmt.Sprintf(", %s late", late.Round(time.Second))
}

// clock shows a time to a person; zero is unknown.
func clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}
