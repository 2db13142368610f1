package fetcher

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// claimDue claims and stages what is due, and returns how long to wait before it
// is called again. While a task of this agent is ready or running nothing is
// claimed, whatever the database says about its lease: only this host knows that
// it is alive.
func (f *Fetcher) claimDue(ctx, work context.Context) (time.Duration, error) {
	for {
		busy, err := f.busy()
		if err != nil {
			return 0, err
		}
		ended, err := f.unrecorded()
		if err != nil {
			return 0, err
		}
		var d *staging.Draft
		var m staging.Manifest
		claim, err := f.db.Claim(ctx, f.Target, taskdb.ClaimOptions{
			Lease: f.Lease, Owner: f.Owner, Claim: !busy, Except: ended,
			Record: func(t taskdb.Task) error {
				if d != nil { // the transaction was begun again
					if err := f.remove(d); err != nil {
						return err
					}
				}
				m = manifestOf(t)
				d, err = f.dir.Create(staging.Name(m.ClaimedAt, m.Kind, t.Version, m.TaskID))
				if err != nil {
					return err
				}
				delete(f.undeletable, d.Task().Name) // the one of that name was removed by hand
				return d.SaveManifest(m)
			},
		})
		if err != nil {
			if d == nil {
				return 0, err
			}
			// The commit's reply may be what was lost.
			m.StageAttempts = 0 // nothing was staged yet
			held, resumeErr := f.resumeDraft(ctx, work, d, &m)
			if held && ctx.Err() == nil {
				continue
			}
			return 0, errors.Join(err, resumeErr)
		}
		f.Metrics.Polled()
		if !claim.Contended {
			f.Metrics.Queue(claim.Due, claim.Scheduled)
		}
		if claim.Task == nil {
			return f.waitAfter(claim), f.recoverDrafts(ctx, work)
		}
		d.Task().OnEvent(f.Timeline.For(m.TaskID, m.Token))
		f.Metrics.Heartbeat() // a claim is the first one
		f.event(d, task.PhaseClaimed, claimText(claim.Task))
		f.stage(work, d, m)
		if ctx.Err() != nil {
			return 0, nil
		}
	}
}

// waitAfter returns how long to wait after a claim that took nothing.
func (f *Fetcher) waitAfter(c *taskdb.Claim) time.Duration {
	wait := f.Poll
	if c.NextDue > 0 {
		wait = min(wait, c.NextDue)
	}
	if c.Busy != nil {
		wait = min(wait, c.LeaseLeft+100*time.Millisecond)
	}
	if c.Contended {
		wait = min(wait, time.Second)
	}
	return wait
}

func manifestOf(t taskdb.Task) staging.Manifest {
	return staging.Manifest{
		TaskID: t.ID, Kind: t.Kind, Token: t.Token, TakenOver: t.TakenOver,
		Release:       staging.Release{ArtifactID: t.ArtifactID},
		StageAttempts: 1,
		DueAt:         t.ExecuteAfter, ClaimedAt: time.Now().UTC(), ClaimDelay: t.Late,
	}
}

func claimText(t *taskdb.Task) string {
	if t.TakenOver {
		return fmt.Sprintf("took over %s task %s, whose lease had run out", t.Kind, t.ID)
	}
	return fmt.Sprintf("claimed %s task %s", t.Kind, t.ID)
}

// busy reports whether a task of this agent is ready or running. One whose outcome
// the database refuses is neither, if others may pass it.
func (f *Fetcher) busy() (bool, error) {
	for _, s := range []staging.State{staging.Ready, staging.Running} {
		tasks, err := f.dir.List(s)
		if err != nil {
			return true, err
		}
		for _, t := range tasks {
			if r := t.Refusal(); r == nil || !r.LetsPass {
				return true, nil
			}
		}
	}
	return false, nil
}

// unrecorded returns the claims of this host that have ended although the database
// does not know it.
func (f *Fetcher) unrecorded() (map[task.ID]task.Token, error) {
	forgotten, err := f.dir.Forgotten()
	if err != nil {
		return nil, err
	}
	tasks, err := f.dir.List(staging.Running)
	if err != nil {
		return nil, err
	}
	ended := make(map[task.ID]task.Token, len(forgotten)+len(tasks))
	for _, c := range forgotten {
		ended[c.TaskID] = c.Token
	}
	for _, t := range tasks {
		if m, err := t.Manifest(); err == nil && t.Refusal() != nil {
			ended[m.TaskID] = m.Token
		}
	}
	return ended, nil
}

func (f *Fetcher) event(d *staging.Draft, phase task.Phase, text string) {
	f.Log.Info(text, "task", d.Task().Name, "state", string(phase))
	err := d.Task().Append(task.Event{Time: time.Now().UTC(), Component: "fetcher", Phase: phase, Text: text})
	if err != nil {
		f.Log.Warn("the timeline misses an event", "task", d.Task().Name, "error", err)
	}
}
