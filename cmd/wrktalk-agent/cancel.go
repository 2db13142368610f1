package main

import (
	"context"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// cancelCommand is `wrktalk-agent cancel`.
func cancelCommand(a *app) *cobra.Command {
	var reason string
	var force, wait bool
	c := &cobra.Command{
		Use: "cancel TASK", Short: "cancel a task that is pending or running", Args: arguments(1, 1),
		Example: `  wrktalk-agent cancel 1397f0f1 --reason "wrong version" --wait`,
		RunE: func(_ *cobra.Command, args []string) error {
			return a.withDatabase(func(ctx context.Context, db *taskdb.DB, cfg *config.Config) error {
				return a.cancel(ctx, client(cfg, db), args[0], reason, force, wait)
			})
		},
	}
	a.outputFlag(c)
	c.Flags().StringVar(&reason, "reason", "", "say why, in `words` for the result and the mail")
	c.Flags().BoolVar(&force, "force", false, "end a task in progress in the database alone, when no agent is left to do it: nothing is restored, nobody is mailed")
	c.Flags().BoolVar(&wait, "wait", false, "wait until the task has ended; exit code 1 when it completed all the same")
	return c
}

func (a *app) cancel(ctx context.Context, c *operator.Client, name, reason string, force, wait bool) error {
	done, err := c.Cancel(ctx, name, reason, force)
	if err != nil {
		return err
	}
	if a.output != "json" {
		fmt.Fprintln(a.stdout, done.Message)
	}
	if wait {
		v := a.progress()
		row, err := c.Follow(ctx, done.ID, v)
		v.clear()
		if err != nil {
			return err
		}
		done.Task = &row
		if a.output != "json" {
			a.printEnd(row)
		}
	}
	if a.output == "json" {
		if err := a.printJSON(done); err != nil {
			return err
		}
	}
	if done.Task != nil && done.Task.Status == task.StatusCompleted {
		return fmt.Errorf("task %s completed before it could be cancelled: see wrktalk-agent rollback", done.ID)
	}
	return nil
}
