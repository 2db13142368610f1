package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

var (
	taskRetry = retry.Policy{First: time.Second, Max: 30 * time.Second}
	stepRetry = retry.Policy{First: 250 * time.Millisecond, Max: 15 * time.Second}
)

// stepTimeout bounds one call of a function that is retried.
const stepTimeout = 30 * time.Second

// errKilled is returned by steps that Signals.Kill cut short, errGiveWay by those
// that wait for the database when a task can be carried out without it.
var (
	errKilled  = errors.New("the agent is being killed")
	errGiveWay = errors.New("another task does not need the database")
	errRefused = errors.New("the database refuses the outcome")
)

// retry calls f until it succeeds or the claim is lost, or ctx ends. It logs each
// failure. The context it gives f ends after stepTimeout.
func (r *Runner) retry(ctx context.Context, t *staging.Task, what string, f func(context.Context) error) error {
	calls := 0
	err := stepRetry.Do(ctx, func() error {
		calls++
		try, cancel := context.WithTimeout(ctx, stepTimeout)
		defer cancel()
		err := f(try)
		if errors.Is(err, taskdb.ErrFenced) {
			return retry.Permanent(err)
		}
		return err
	}, func(err error, wait time.Duration) {
		r.reportReady(calls, err)
		r.Log.Warn(what+" failed; trying again", "task", t.Name, "error", err, "in", wait)
	})
	if err != nil && !errors.Is(err, taskdb.ErrFenced) {
		return fmt.Errorf("%s: %w", what, err)
	}
	if calls > 2 { // otherwise no failure was reported
		r.reportReady(calls, nil)
	}
	return err
}

// retryWithDB is retry for what needs the database: it gives way to a task that
// was asked for offline.
func (r *Runner) retryWithDB(ctx context.Context, t *staging.Task, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watch := background.Start(ctx, func(ctx context.Context) {
		for {
			if urgent, err := r.offline(); err == nil && urgent != nil {
				cancel(errGiveWay)
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-r.hints:
			}
		}
	})
	defer watch.Stop()
	err := r.retry(ctx, t, what, f)
	if err != nil && errors.Is(context.Cause(ctx), errGiveWay) && !errors.Is(err, taskdb.ErrFenced) {
		return fmt.Errorf("%w: %w", errGiveWay, err)
	}
	return err
}

// reportReady reports what the n-th try in a row came to: a failure counts from
// the second one.
func (r *Runner) reportReady(n int, err error) {
	switch {
	case r.Ready == nil:
	case err == nil:
		r.Ready("")
	case n > 1:
		r.Ready(err.Error())
	}
}
