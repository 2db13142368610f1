// Package runner makes a ready directory an outcome: it takes a task's
// directory, verifies it, has wrktalk-deploy carry it out behind the
// maintenance page, watches and if need be kills that process, keeps the
// outcome on disk, records it in the database and hands the directory to the
// notifier.
//
// The files of this package, in the order a task meets them: runner.go finds
// it, run.go takes it through its run, deploy.go and process.go have it
// deployed, record.go makes its outcome known.
package runner

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// Maintenance is the switch of the maintenance page. Owner names the run that
// turns it on, so that only that run turns it off again.
type Maintenance interface {
	Enter(ctx context.Context, owner string) error
	Leave(ctx context.Context, owner string) error
	// Recover turns off what an owner other than active left on.
	Recover(ctx context.Context, active string) error
	// State tells whether the page is on, whoever put it up.
	State(ctx context.Context) (on, ours bool, err error)
}

// Options are the runner's settings, all of them plain values.
type Options struct {
	Target  taskdb.Target
	Program string   // path of wrktalk-deploy
	Env     []string // all that wrktalk-deploy sees of the environment

	Heartbeat     time.Duration // between two signs of life in the database
	Lease         time.Duration // age of a heartbeat after which another agent may take a task over
	Rescan        time.Duration // between two looks at the staging directory without an event
	ShutdownGrace time.Duration // what a deployment in flight gets after Stop
	MaxAttempts   int           // deployments begun for one claim before it is given up

	Timeout        time.Duration // of bringing a release up
	RestoreTimeout time.Duration // of bringing the previous one back
	Compose        *deployment.Compose
	Helm           *deployment.Helm

	Maintenance         Maintenance   // never nil
	HasPage             bool          // false: there is none to put up, but one of old may need to go
	MaintenanceRequired bool          // a page that cannot be put up fails the task
	MaintenanceTimeout  time.Duration // of putting it up or taking it down

	Timeline *taskdb.Timeline // copies what happens to the database; may be nil

	// Ready is told why nothing gets on, after the second failure in a row, and
	// "" once it does again; it may be nil.
	Ready func(reason string)

	Meter meter.Meter // nil measures nothing
	Log   *slog.Logger
}

// Signals tell the runner to end, more and more urgently.
type Signals struct {
	Stop      context.Context // take no new task
	Interrupt context.Context // give up the deployment in flight, restoring what served
	Kill      context.Context // leave everything as it is, at once; the next runner recovers
}

// Runner carries out one task at a time.
type Runner struct {
	Options
	db  *taskdb.DB
	dir *staging.Dir

	hints <-chan struct{} // something may be ready; set by Run

	flagged *bool // the last value that maintenance_mode_enabled was given
	phases  meter.Stopwatch

	margin, exitLimit, pagePatience time.Duration
}

// New returns a runner over an open database and a staging directory that was
// opened as its runner. Both stay the caller's.
func New(db *taskdb.DB, dir *staging.Dir, o Options) *Runner {
	return &Runner{
		Options: o, db: db, dir: dir, phases: meter.Stopwatch{Meter: o.Meter},
		margin: defaultMargin, exitLimit: defaultExitLimit, pagePatience: pagePatience,
	}
}

// Run carries out tasks until sig.Stop is done and the one in flight has ended.
// First it goes on with what its predecessor left in running; ready is called
// before that, because it may take as long as a deployment. It returns an error
// only if the staging directory cannot be read.
func (r *Runner) Run(sig Signals, ready func()) error {
	watcher := r.dir.Watch(r.Rescan, staging.Ready)
	defer watcher.Stop()
	if err := watcher.Err(); err != nil {
		r.Log.Warn("no file system events: looking for ready tasks by the timer alone", "error", err, "every", r.Rescan)
	}
	r.hints = watcher.Hints()
	if err := r.resume(ready); err != nil {
		return err
	}
	for {
		if err := r.drain(sig); err != nil {
			return err
		}
		r.reflectMaintenance(sig.Stop)
		select {
		case <-sig.Stop.Done():
			return nil
		case <-r.hints:
		}
	}
}

// resume looks at the tasks a predecessor was killed over: what of the page
// they left up is to stay. They are gone on with by drain.
func (r *Runner) resume(ready func()) error {
	tasks, err := r.dir.List(staging.Running)
	if err != nil {
		return err
	}
	active := ""
	for _, t := range tasks {
		if _, err := t.Outcome(); err != nil {
			active = t.Name
		}
	}
	r.recoverMaintenance(active)
	ready()
	return nil
}

// drain carries out every task there is.
func (r *Runner) drain(sig Signals) error {
	for sig.Stop.Err() == nil {
		t, err := r.next()
		if t == nil || err != nil {
			return err
		}
		if t.State == staging.Running {
			r.Log.Info("going on with a task that was interrupted", "task", t.Name)
			r.run(sig, t)
			if t.State != staging.Running || t.Gone() {
				r.endMaintenance(t)
			}
			continue
		}
		if err := t.Take(); err != nil {
			return err
		}
		r.run(sig, t)
	}
	return nil
}

// next returns the task to go on with, nil for none. What lies in running was
// left there by a predecessor, or gave way to a task that was asked for offline.
// What an attempt left half-way comes first: the database that the others wait for
// may be part of it. Outcomes are recorded in the order in which they came about,
// before anything else begins.
func (r *Runner) next() (*staging.Task, error) {
	if t, err := r.offline(); t != nil || err != nil {
		return t, err
	}
	left, err := r.halfway()
	if err != nil {
		return nil, err
	}
	if len(left) > 0 {
		return left[0], nil
	}
	if t, err := r.unrecorded(); t != nil || err != nil {
		return t, err
	}
	for _, s := range []staging.State{staging.Running, staging.Ready} {
		tasks, err := r.dir.List(s)
		if err != nil {
			return nil, err
		}
		if len(tasks) > 0 {
			return tasks[0], nil
		}
	}
	return nil, nil
}

// halfway returns the tasks in running that an attempt left without an outcome,
// oldest first.
func (r *Runner) halfway() ([]*staging.Task, error) {
	tasks, err := r.dir.List(staging.Running)
	return slices.DeleteFunc(tasks, func(t *staging.Task) bool {
		run, err := t.Run()
		if err != nil || run.Attempts == 0 {
			return true
		}
		_, err = t.Outcome()
		return !errors.Is(err, fs.ErrNotExist)
	}), err
}

// unrecorded returns the task in running whose outcome is the oldest, nil for
// none.
func (r *Runner) unrecorded() (first *staging.Task, err error) {
	tasks, err := r.dir.List(staging.Running)
	if err != nil {
		return nil, err
	}
	var earliest time.Time
	for _, t := range tasks {
		o, err := t.Outcome()
		if err == nil && (first == nil || o.FinishedAt.Before(earliest)) {
			first, earliest = t, o.FinishedAt
		}
	}
	return first, nil
}

// offline returns the oldest ready task that an operator asked for on this host,
// nil for none.
func (r *Runner) offline() (*staging.Task, error) {
	tasks, err := r.dir.List(staging.Ready)
	if err != nil {
		return nil, err
	}
	for _, t := range tasks {
		if m, err := t.Manifest(); err == nil && m.Offline {
			return t, nil
		}
	}
	return nil, nil
}

// recoverMaintenance ends a page that a killed run left up.
func (r *Runner) recoverMaintenance(active string) {
	ctx, cancel := context.WithTimeout(context.Background(), r.MaintenanceTimeout)
	defer cancel()
	if err := r.Maintenance.Recover(ctx, active); err != nil {
		r.Log.Error("maintenance could not be ended after a crash; trying on", "error", err)
	}
	r.reflectMaintenance(context.Background())
}

// endMaintenance ends a page that an interrupted attempt left up for a task that
// has now come to its end without another attempt.
func (r *Runner) endMaintenance(t *staging.Task) {
	ctx, cancel := context.WithTimeout(context.Background(), r.MaintenanceTimeout)
	defer cancel()
	if err := r.Maintenance.Leave(ctx, t.Name); err != nil {
		r.Log.Error("the maintenance page could not be taken down; trying on", "task", t.Name, "error", err)
	}
}

// reflectMaintenance makes the database's flag say what is the case. It is a
// courtesy to those who look there: a failure is tried again at the next look.
func (r *Runner) reflectMaintenance(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	on, _, err := r.Maintenance.State(ctx)
	if err == nil {
		r.Meter.Maintenance(on)
	}
	if err != nil || (r.flagged != nil && *r.flagged == on) {
		return
	}
	if r.flagged == nil && !on && r.othersBusy(ctx) {
		return // it may be their page that the flag tells of
	}
	if err := r.db.SetMaintenance(ctx, r.Target, on); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return // told to stop
		}
		r.Log.Warn("maintenance_mode_enabled could not be updated", "error", err)
		return
	}
	r.flagged = &on
}

// othersBusy reports whether the database knows of a task in progress that does
// not lie here.
func (r *Runner) othersBusy(ctx context.Context) bool {
	s, err := r.db.Status(ctx, r.Target)
	if err != nil {
		return false // the write that follows will say why
	}
	for _, t := range s.InProgress {
		if _, err := r.dir.Find(t.ID); errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}

// event notes one step of a run in the task's timeline and in the log.
func (r *Runner) event(t *staging.Task, phase task.Phase, text string) {
	r.note(t, task.Event{Time: time.Now().UTC(), Component: "runner", Phase: phase, Text: text})
}

func (r *Runner) note(t *staging.Task, e task.Event) {
	r.phases.Enter(e.Phase)
	r.Log.Info(e.Text, "task", t.Name, "state", string(e.Phase))
	if err := t.Append(e); err != nil {
		r.Log.Warn("the timeline misses an event", "task", t.Name, "error", err)
	}
}

// errKilled is returned by steps that sig.Kill cut short, errGiveWay by those
// that wait for the database when a task can be carried out without it.
var (
	errKilled  = errors.New("the agent is being killed")
	errGiveWay = errors.New("another task does not need the database")
)

// patiently is again for what needs the database: it gives way to a task that
// was asked for offline.
func (r *Runner) patiently(ctx context.Context, t *staging.Task, what string, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	done := make(chan struct{})
	defer func() { cancel(nil); <-done }()
	go func() {
		defer close(done)
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
	}()
	err := r.again(ctx, t, what, f)
	if err != nil && errors.Is(context.Cause(ctx), errGiveWay) && !errors.Is(err, taskdb.ErrFenced) {
		return fmt.Errorf("%w: %w", errGiveWay, err)
	}
	return err
}

// again calls f until it succeeds or is fenced, or ctx ends, waiting longer
// after each failure, which it logs. The context it gives f bounds one call.
func (r *Runner) again(ctx context.Context, t *staging.Task, what string, f func(context.Context) error) error {
	const longest = 15 * time.Second
	for n, wait := 1, 250*time.Millisecond; ; n, wait = n+1, min(2*wait, longest) {
		try, cancel := context.WithTimeout(ctx, 30*time.Second)
		err := f(try)
		cancel()
		if err == nil || errors.Is(err, taskdb.ErrFenced) {
			if n > 2 { // otherwise it was not told
				r.tell(n, nil)
			}
			return err
		}
		if ctx.Err() != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		r.tell(n, err)
		r.Log.Warn(what+" failed; trying again", "task", t.Name, "error", err, "in", wait)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return fmt.Errorf("%s: %w", what, err)
		}
	}
}

// tell reports what the n-th try in a row came to.
func (r *Runner) tell(n int, err error) {
	switch {
	case r.Ready == nil:
	case err == nil:
		r.Ready("")
	case n > 1:
		r.Ready(err.Error())
	}
}
