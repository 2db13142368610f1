package main

import (
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// releasesCommand is `wrktalk-agent releases`.
func releasesCommand(a *app) *cobra.Command {
	var last int
	c := &cobra.Command{
		Use: "releases", Short: "list the releases that the database holds for this target, newest first", Args: arguments(0, 0),
		Example: "  wrktalk-agent releases\n  wrktalk-agent releases --last 0 --output json",
		RunE: func(*cobra.Command, []string) error {
			if last < 0 {
				return usagef("--last %d: give a number of releases, or 0 for all", last)
			}
			return a.withDatabase(func(ctx context.Context, db *taskdb.DB, cfg *config.Config) error {
				all, err := db.Artifacts(ctx, deploymentOf(cfg).target.Chart(), last)
				if err != nil {
					return err
				}
				return a.printReleases(all)
			})
		},
	}
	a.outputFlag(c)
	c.Flags().IntVarP(&last, "last", "n", 20, "list this `number` of releases; 0 is all")
	return c
}

// release is an element of what `releases --output json` prints.
type release struct {
	ID        string         `json:"id"`
	Version   string         `json:"version"`
	ChartType task.ChartType `json:"chart_type"`
	Bytes     int64          `json:"bytes"`
	SHA256    string         `json:"sha256"`
	Current   bool           `json:"is_current"`
	Previous  bool           `json:"is_previous"`
	AppliedAt *time.Time     `json:"applied_at"`
	CreatedAt *time.Time     `json:"created_at"`
}

func (a *app) printReleases(all []*taskdb.Artifact) error {
	if a.output == "json" {
		list := make([]release, 0, len(all))
		for _, r := range all {
			list = append(list, release{r.ID, r.Version, r.ChartType, r.Size, r.SHA256, r.IsCurrent, r.IsPrevious, r.AppliedAt, r.CreatedAt})
		}
		return a.printJSON(list)
	}
	if len(all) == 0 {
		fmt.Fprintln(a.stdout, "the database holds no release for this target: wrktalk-agent push stores one")
		return nil
	}
	clock := func(t *time.Time) string {
		if t == nil {
			return "-"
		}
		return operator.Clock(*t)
	}
	tw := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, "RELEASE\tSTORED\tAPPLIED\tBYTES\tSHA256\t")
	for _, r := range all {
		is := ""
		switch {
		case r.IsCurrent:
			is = "serves"
		case r.IsPrevious:
			is = "served before"
		}
		fmt.Fprintf(tw, "%s\t%s\t%s\t%d\t%.12s\t%s\n", operator.OrDash(r.Version), clock(r.CreatedAt), clock(r.AppliedAt), r.Size, r.SHA256, is)
	}
	return tw.Flush()
}
