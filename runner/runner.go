// Package runner makes a ready directory an outcome: it takes a task's
// directory, verifies it, has wrktalk-deploy carry it out behind the
// maintenance page, watches and if need be kills that process, keeps the
// outcome on disk, records it in the database and hands the directory to the
// notifier.
//
// The files of this package, in the order in which a task meets them: queue.go
// finds it, run.go takes it from verification to its outcome, deploy.go has
// wrktalk-deploy (process.go, job.go) carry it out behind the maintenance page
// (maintenance.go), record.go makes its outcome known. Meanwhile heartbeat.go
// keeps its claim and cancel.go looks for an operator's request to cancel it.
package runner

import (
	"context"
	"log/slog"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
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
	Settings       protocol.Settings

	Maintenance         Maintenance   // never nil
	MaintenanceEnabled  bool          // false: there is no page to put up, but an earlier one may have to go
	MaintenanceHint     string        // said once, at the first deployment: why there is no page although nobody chose that
	MaintenanceRequired bool          // a page that cannot be put up fails the task
	MaintenanceTimeout  time.Duration // of putting it up or taking it down

	Timeline *taskdb.EventMirror // copies what happens to the database; may be nil

	// Ready is told why nothing gets on, after the second failure in a row, and
	// "" once it does again; it may be nil.
	Ready func(reason string)

	// Alive is told, as long as the runner gets on, how long it may wait at most until
	// it says so again; it may be nil.
	Alive   func(wait time.Duration)
	Metrics telemetry.Recorder // nil records nothing
	Log     *slog.Logger
}

// Signals tell the runner to end, more and more urgently. Each is done when the next
// one is.
type Signals struct {
	Idle      context.Context // take no new task, and end once no deployment is in flight
	Stop      context.Context // the same, within the shutdown grace
	Interrupt context.Context // give up the deployment in flight, restoring what served
	Kill      context.Context // leave everything as it is, at once; the next runner recovers
}

// Runner carries out one task at a time.
type Runner struct {
	Options
	db  *taskdb.DB
	dir *staging.Dir

	hints <-chan struct{} // something may be ready; set by Run

	ended string // the task whose end was logged and counted last, by its directory's name

	hinted          bool  // MaintenanceHint was said
	maintenanceFlag *bool // the last value that maintenance_mode_enabled was given
	phases          telemetry.Stopwatch

	hangMargin  time.Duration // see defaultHangMargin
	exitTimeout time.Duration // see defaultExitTimeout
	pageTimeout time.Duration // see defaultPageTimeout
}

// New returns a runner over an open database and a staging directory that was
// opened as its runner. Both stay the caller's.
func New(db *taskdb.DB, dir *staging.Dir, o Options) *Runner {
	return &Runner{
		Options: o, db: db, dir: dir, phases: telemetry.Stopwatch{Metrics: o.Metrics},
		hangMargin: defaultHangMargin, exitTimeout: defaultExitTimeout, pageTimeout: defaultPageTimeout,
	}
}

// Run carries out tasks until sig.Idle is done and the deployment in flight has ended.
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
	unrecorded := background.Every(sig.Stop, r.Heartbeat, r.keepUnrecorded)
	defer unrecorded.Stop()
	for {
		if err := r.drain(sig); err != nil {
			return err
		}
		r.syncMaintenanceFlag(sig.Idle)
		r.alive(r.Rescan)
		select {
		case <-sig.Idle.Done():
			return nil
		case <-r.hints:
		}
	}
}

func (r *Runner) alive(wait time.Duration) {
	if r.Alive != nil {
		r.Alive(wait)
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
	for sig.Idle.Err() == nil {
		t, err := r.next()
		if t == nil || err != nil {
			return err
		}
		if t.State == staging.Running {
			r.Log.Info("going on with a task that was interrupted", "task", t.Name)
			r.runTask(sig, t)
			if t.State != staging.Running || t.Missing() {
				r.leaveMaintenance(t)
			}
			continue
		}
		if err := t.Start(); err != nil {
			return err
		}
		r.runTask(sig, t)
	}
	return nil
}
