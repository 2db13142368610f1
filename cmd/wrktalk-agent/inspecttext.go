package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/wrktalk/wrktalk-agent/operator"
)

// shownEvents is how many events of each task an overview shows.
const shownEvents = 3

// printInspection shows an inspection to a person: everything about one task, or
// the essential about all.
func printInspection(w io.Writer, r *operator.Inspection, whole bool, now time.Time) error {
	var b strings.Builder
	what := "Staging directory"
	if len(r.Components) == 0 {
		what = "History"
	}
	fmt.Fprintf(&b, "%s %s\n", what, r.Dir)
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
			printTask(&b, &t, whole, now)
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func printTask(b *strings.Builder, t *operator.TaskReport, whole bool, now time.Time) {
	fmt.Fprintf(b, "\n  %s\n", t.Name)
	tw := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	row := func(key, format string, args ...any) {
		fmt.Fprintf(tw, "    %s\t%s\n", key, fmt.Sprintf(format, args...))
	}
	if m := t.Manifest; m != nil {
		row("task", "%s, %s of %s", m.TaskID, m.Kind, operator.OrDash(m.Release.Version))
		row("claim", "%s (due %s, claimed %s%s)", m.Token, operator.Clock(m.DueAt), operator.Clock(m.ClaimedAt), lateText(m.ClaimDelay))
		if m.Offline {
			row("asked for", "on this host, without the database")
		}
		if m.TakenOver {
			row("taken over", "from an agent whose lease had run out: the release may be half applied")
		}
		if m.Rejection != "" {
			row("refused", "%s", m.Rejection)
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
		row("cancel", "asked for by an operator: %s", operator.OrDash(*t.Cancel))
	}
	if o := t.Outcome; o != nil {
		row("outcome", "%s", operator.OutcomeText(*o))
		row("serves", "%s", operator.OrDash(o.Serving))
	}
	printMail(t.Messages, row)
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
func printMail(m *operator.Mail, row func(key, format string, args ...any)) {
	if m == nil {
		return
	}
	if m.Note != "" {
		row("mail", "%s", m.Note)
	}
	for _, d := range m.Deliveries {
		text := fmt.Sprintf("%s: %s after %d attempt(s)", d.Address, d.State, d.Attempts)
		if d.Pending && d.Attempts > 0 {
			text += ", next try " + operator.Clock(d.NextTry)
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
