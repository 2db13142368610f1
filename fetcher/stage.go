package fetcher

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// rejection is why a task cannot be carried out: a sentence for an administrator.
type rejection string

func (r rejection) Error() string { return string(r) }

func reject(format string, args ...any) error { return rejection(fmt.Sprintf(format, args...)) }

// stage makes a claim a ready directory, or a rejection. It tries until one of
// them is published, the claim is lost, or ctx ends; then the draft stays where
// the next fetcher finds it.
func (f *Fetcher) stage(ctx context.Context, d *staging.Draft, claim staging.Manifest) {
	ctx, lost := context.WithCancelCause(ctx)
	defer lost(nil)
	defer f.startHeartbeat(ctx, claim, lost).Stop()

	began := time.Now()
	err := f.retryPolicy().Do(ctx, func() error {
		err := f.tryStage(ctx, d, claim)
		if errors.Is(err, staging.ErrUnusable) { // which ends Run
			return retry.Permanent(err)
		}
		return err
	}, func(err error, _ time.Duration) {
		f.Log.Error("staging failed; trying again", "task", d.Task().Name, "error", err)
		f.ready("staging " + d.Task().Name + ": " + err.Error())
	})
	switch {
	case err == nil:
		f.Metrics.PhaseEnded(task.PhaseStaging, time.Since(began))
	case errors.Is(context.Cause(ctx), taskdb.ErrFenced):
		f.Log.Warn("the claim was lost while staging; leaving the task alone", "task", d.Task().Name)
		if err := f.remove(d); err != nil {
			f.Log.Error("a lost draft could not be shredded", "task", d.Task().Name, "error", err)
		}
	default: // ctx has ended, or Run will
		f.Log.Info("stopping in the middle of staging; the next start resumes it", "task", d.Task().Name)
		f.uncountAttempt(d, claim)
	}
}

// uncountAttempt takes back the attempt that a stop of the agent ended: it says
// nothing about the task.
func (f *Fetcher) uncountAttempt(d *staging.Draft, claim staging.Manifest) {
	if d.Task().State != staging.Tmp {
		return
	}
	claim.StageAttempts--
	if err := d.SaveManifest(claim); err != nil {
		f.Log.Warn("this attempt at staging counts, although it was only stopped", "task", d.Task().Name, "error", err)
	}
	_ = d.Close()
}

// startHeartbeat keeps the claim alive while it is staged and cancels the
// staging when it turns out to be lost. The caller stops the worker.
func (f *Fetcher) startHeartbeat(ctx context.Context, claim staging.Manifest, lost context.CancelCauseFunc) *background.Worker {
	return background.Every(ctx, f.Heartbeat, func(ctx context.Context) bool {
		f.alive(f.Heartbeat)
		err := f.db.Heartbeat(ctx, claim.TaskID, claim.Token)
		switch {
		case err == nil:
			f.Metrics.Heartbeat()
		case errors.Is(err, taskdb.ErrFenced):
			lost(err)
			return false
		case ctx.Err() == nil:
			f.Log.Warn("heartbeat failed; staging goes on", "task", claim.TaskID, "error", err)
		}
		return true
	})
}

// tryStage makes one attempt. A failure of this host, such as a full disk, is a
// rejection too, and so is what the database will say again: a task that fails
// clearly beats one that waits for a person to read a log. An error is worth
// another attempt.
func (f *Fetcher) tryStage(ctx context.Context, d *staging.Draft, m staging.Manifest) error {
	renewed, err := d.Renew()
	if renewed {
		f.Log.Warn("the directory of a task was removed while it was staged; beginning anew", "task", d.Task().Name)
		err = d.SaveManifest(m)
	}
	if err == nil {
		err = d.Reset()
	}
	if err != nil {
		return err
	}
	// The draft of a predecessor that was killed has what that one found.
	m.Files, m.Previous, m.PreviousStaged, m.Rejection = nil, nil, false, ""
	err = f.stageFiles(ctx, d, &m)
	if err != nil && d.Task().Missing() {
		return err
	}
	var no rejection
	if err != nil && !errors.As(err, &no) && ctx.Err() == nil && !retryable(err) {
		no = rejection(fmt.Sprintf("staging failed: %v", err))
		err = no
	}
	if err == nil {
		err = f.publish(d, m)
		if !errors.Is(err, staging.ErrTooLarge) {
			return err
		}
		no = rejection(fmt.Sprintf("release artifact %s cannot be staged: %v", m.Release.ArtifactID, err))
		// What is too large may be the text of a row.
		m.Release, m.Previous = staging.Release{ArtifactID: m.Release.ArtifactID}, nil
	}
	if no == "" {
		return err
	}
	m.Rejection = task.SafeText(no.Error(), task.MaxMessage)
	f.event(d, task.PhaseStaging, "refused: "+m.Rejection)
	if err := d.Reset(); err != nil {
		return err
	}
	m.Files, m.PreviousStaged = nil, false
	return f.publish(d, m)
}

func (f *Fetcher) publish(d *staging.Draft, m staging.Manifest) error {
	m.StagedAt = time.Now().UTC()
	text := strings.TrimSpace("staged " + m.Release.Version)
	if m.Rejection != "" {
		text = "handed over to be failed"
	}
	f.event(d, task.PhaseReady, text)
	_, err := d.Publish(m)
	return err
}

// retryable reports whether an error may go away by waiting. A database that does
// not let the agent in any more could not be told of a rejection either.
func retryable(err error) bool {
	return taskdb.Transient(err) || errors.Is(err, taskdb.ErrAuth) || errors.Is(err, taskdb.ErrTLS)
}
