package runner

import (
	"context"
	"errors"
	"io/fs"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// page is the maintenance page of one run: put up when wrktalk-deploy is about
// to change what serves, and taken down when the run is over, whatever came of
// it. What goes wrong with it is said in the log, the result and the mail.
type page struct {
	*run
	entered bool
	on      bool // or half on, or left on by an earlier attempt
	errors  []string
}

func (p *page) enter(ctx context.Context) protocol.Approval {
	if p.MaintenanceHint != "" && !p.hinted {
		p.hinted = true
		p.event(task.PhaseMaintenance, p.MaintenanceHint)
	}
	if !p.MaintenanceEnabled || p.entered {
		return protocol.Approval{Approved: true}
	}
	p.event(task.PhaseMaintenance, "putting the maintenance page up")
	p.entered, p.on = true, true // also when it fails: leaving undoes what was begun
	if err := p.Maintenance.Enter(ctx, p.task.Name); err != nil {
		if p.MaintenanceRequired {
			p.event(task.PhaseMaintenance, "the maintenance page could not be put up, and is required")
			return protocol.Approval{Reason: "maintenance is required and could not be entered: " + err.Error()}
		}
		p.addError("the maintenance page could not be put up: " + err.Error())
	}
	p.syncMaintenanceFlag(context.Background())
	return protocol.Approval{Approved: true}
}

func (p *page) leave() {
	if !p.on {
		return
	}
	p.event(task.PhaseMaintenance, "taking the maintenance page down")
	if err := p.takePageDown(p.task); err != nil {
		p.addError("the maintenance page could not be taken down: " + err.Error())
	}
	p.syncMaintenanceFlag(context.Background())
}

func (p *page) addError(text string) {
	p.errors = append(p.errors, text)
	p.event(task.PhaseMaintenance, text)
	p.Log.Error(text, "task", p.task.Name)
}

// addMaintenanceErrors adds to the result what went wrong with the page.
func (p *page) addMaintenanceErrors(res *protocol.Result) {
	for _, text := range p.errors {
		if res.Error != "" {
			res.Error += "; " + text
		} else {
			res.Message += "; " + text
		}
	}
}

// recoverMaintenance ends a page that a killed run left up.
func (r *Runner) recoverMaintenance(active string) {
	ctx, cancel := context.WithTimeout(context.Background(), r.MaintenanceTimeout)
	defer cancel()
	if err := r.Maintenance.Recover(ctx, active); err != nil {
		r.Log.Error("maintenance could not be ended after a crash; trying on", "error", err)
	}
	r.syncMaintenanceFlag(context.Background())
}

// leaveMaintenance takes down a page that an interrupted attempt of t left up.
func (r *Runner) leaveMaintenance(t *staging.Task) {
	if err := r.takePageDown(t); err != nil {
		r.Log.Error("the maintenance page could not be taken down; trying on", "task", t.Name, "error", err)
	}
}

func (r *Runner) takePageDown(t *staging.Task) error {
	ctx, cancel := context.WithTimeout(context.Background(), r.MaintenanceTimeout)
	defer cancel()
	return r.Maintenance.Leave(ctx, t.Name)
}

// syncMaintenanceFlag makes the database's flag maintenance_mode_enabled tell
// whether the page is up. It is a courtesy to those who look there: a failure is
// tried again after the next task.
func (r *Runner) syncMaintenanceFlag(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	on, _, err := r.Maintenance.State(ctx)
	if err == nil {
		r.Metrics.Maintenance(on)
	}
	if err != nil || (r.maintenanceFlag != nil && *r.maintenanceFlag == on) {
		return
	}
	if r.maintenanceFlag == nil && !on && r.busyElsewhere(ctx) {
		return // it may be their page that the flag tells of
	}
	if err := r.db.SetMaintenance(ctx, r.Target, on); err != nil {
		if errors.Is(ctx.Err(), context.Canceled) {
			return // told to stop
		}
		r.Log.Warn("maintenance_mode_enabled could not be updated", "error", err)
		return
	}
	r.maintenanceFlag = &on
}

// busyElsewhere reports whether the database knows of a task in progress that does
// not lie here.
func (r *Runner) busyElsewhere(ctx context.Context) bool {
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
