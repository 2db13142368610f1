package main

import (
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/history"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// pastRuns is where the notifier keeps what is left of runs.
func pastRuns(cfg *config.Config) *history.Store {
	limits := history.Limits{Runs: cfg.History.Keep, Age: cfg.History.MaxAge, Bytes: cfg.History.MaxSize}
	return history.New(cfg.History.Dir, limits)
}

// historyCommand is `wrktalk-agent history`.
func historyCommand(a *app) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use: "history", Short: "list the runs that are over on this host, newest first", Args: arguments(0, 0),
		Example: "  wrktalk-agent history\n  wrktalk-agent logs 1397f0f1        # what was said in one of them",
		RunE:    func(*cobra.Command, []string) error { return a.history(last) },
	}
	a.outputFlag(c)
	c.Flags().IntVarP(&last, "last", "n", 20, "list this `number` of runs; 0 is all")
	return c
}

// pastRun is an element of what `history --output json` prints.
type pastRun struct {
	Name    string       `json:"name"`
	Path    string       `json:"path"`
	Outcome task.Outcome `json:"outcome"`
}

func (a *app) history(last int) error {
	if last < 0 {
		return usagef("--last %d: give a number of runs, or 0 for all", last)
	}
	cfg, err := a.config()
	if err != nil {
		return err
	}
	runs, err := client(cfg, nil).History()
	if err != nil {
		return err
	}
	if last > 0 {
		runs = runs[:min(last, len(runs))]
	}
	if a.output == "json" {
		list := make([]pastRun, 0, len(runs))
		for _, r := range runs {
			list = append(list, pastRun(r))
		}
		return a.printJSON(list)
	}
	if len(runs) == 0 {
		fmt.Fprintf(a.stdout, "no run is kept in %s yet: one is when its mails are settled\n", cfg.History.Dir)
		return nil
	}
	return a.printRuns(runs)
}

// lastRuns shows what is known without the database: the last runs of this host.
func (a *app) lastRuns(cfg *config.Config) {
	runs, err := client(cfg, nil).History()
	if err != nil || len(runs) == 0 {
		return
	}
	fmt.Fprintln(a.stdout, "The last runs on this host, as its history has them:")
	_ = a.printRuns(runs[:min(5, len(runs))]) // the error of the database says more
}

// printRuns lists runs, one a line.
func (a *app) printRuns(runs []history.Run) error {
	ids := make([]task.ID, 0, len(runs))
	for _, r := range runs {
		ids = append(ids, r.Outcome.TaskID)
	}
	short := operator.ShortIDs(ids)
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, r := range runs {
		o := r.Outcome
		text := fmt.Sprintf("%s of %s %s in %s", o.Kind, operator.OrDash(o.ReleaseVersion), o.Status(), o.Duration().Round(10*time.Millisecond))
		if o.Error != "" {
			text += ": " + o.Error
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\n", operator.Clock(o.FinishedAt), short[o.TaskID], text)
	}
	return tw.Flush()
}

// pastLogs shows what is kept of a run: its log, and how it ended.
func (a *app) pastLogs(r history.Run) error {
	l, err := operator.PastTaskLog(r)
	if err != nil {
		return err
	}
	if a.output == "json" {
		return a.printJSON(l)
	}
	fmt.Fprint(a.stdout, l.Log)
	if l.Log == "" { // it ended before anybody said anything
		for _, e := range l.Events {
			fmt.Fprintln(a.stdout, eventText(e))
		}
	}
	fmt.Fprintln(a.stdout, operator.OutcomeText(r.Outcome))
	return nil
}
