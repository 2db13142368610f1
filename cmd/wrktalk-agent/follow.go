package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// follow shows a task's phases until it has ended, and fails if the task did.
func (a *app) follow(ctx context.Context, c *operator.Client, id task.ID, version string) error {
	v := a.progress()
	v.line(fmt.Sprintf("task %s: %s", id, version))
	row, err := c.Follow(ctx, id, v)
	v.clear()
	if err != nil {
		return err
	}
	return a.printRow(row)
}

// printRow prints how a task ended, and fails if the task did.
func (a *app) printRow(row taskdb.TaskRow) error {
	if a.output == "json" {
		if err := a.printJSON(row); err != nil {
			return err
		}
	} else {
		a.printEnd(row)
	}
	if row.Status == task.StatusFailed {
		return errSilent
	}
	return nil
}

// printEnd tells a person how a task ended, and what serves if it failed.
func (a *app) printEnd(row taskdb.TaskRow) {
	fmt.Fprintln(a.stdout, operator.RowText(row))
	if text := operator.ServingText(row); text != "" {
		fmt.Fprintln(a.stdout, text)
	}
}

// progress shows what happens to a task while it is followed: on a terminal the
// current phase with its age, elsewhere a line for each event.
type progress struct {
	out     io.Writer
	live    bool // rewrite the last line
	started time.Time
	last    *task.Event // the last event
	drawn   bool        // the live line is on the screen
}

// progress returns one that shows something to a person, and nothing to a
// program.
func (a *app) progress() *progress {
	if a.output == "json" {
		return &progress{out: io.Discard}
	}
	return &progress{out: a.stdout, live: isTerminal(a.stdout), started: time.Now()}
}

// Event implements operator.Progress.
func (p *progress) Event(e task.Event) {
	p.last = &e
	p.line(fmt.Sprintf("%s  %-11s  %s", e.Time.Local().Format("15:04:05.0"), e.Phase, e.Text))
}

// Waiting implements operator.Progress.
func (p *progress) Waiting(why string) { p.line(why) }

// Poll implements operator.Progress: it rewrites the live line, the current phase
// and how long it has been on.
func (p *progress) Poll(status task.Status) {
	if !p.live {
		return
	}
	phase, since := "waiting", p.started
	switch {
	case p.last != nil:
		phase, since = string(p.last.Phase), p.last.Time
	case status == task.StatusInProgress:
		phase = "in progress"
	}
	const spin, turn = `|/-\`, 100 * time.Millisecond
	elapsed := time.Since(since)
	fmt.Fprintf(p.out, "\r\x1b[K%c %s %s", spin[int(elapsed/turn)%len(spin)], phase, elapsed.Round(turn))
	p.drawn = true
}

// line prints one line that stays.
func (p *progress) line(text string) {
	p.clear()
	fmt.Fprintln(p.out, text)
}

// clear removes the live line.
func (p *progress) clear() {
	if p.drawn {
		fmt.Fprint(p.out, "\r\x1b[K")
		p.drawn = false
	}
}
