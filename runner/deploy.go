package runner

import (
	"context"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// margin is what a deployment may take beyond its own limits before it is taken
// to hang.
const margin = time.Minute

// deploy has wrktalk-deploy carry out the job behind the maintenance page, and
// has what a dead wrktalk-deploy left repaired by another one.
func (r *Runner) deploy(sig Signals, t *staging.Task, job deployment.Job, beat *heartbeat) (*deployment.Result, error) {
	page := &page{r: r, t: t}
	res, err := r.attempt(sig, t, job, beat, page)
	page.leave()
	if err != nil {
		return nil, err
	}
	page.amend(res)
	return res, nil
}

func (r *Runner) attempt(sig Signals, t *staging.Task, job deployment.Job, beat *heartbeat, page *page) (*deployment.Result, error) {
	res, died, err := r.execute(sig, t, job, beat, page)
	if err != nil || died == "" {
		return res, err
	}
	r.event(t, task.PhaseRestoring, "the deployment process "+died+"; finding out what it left")
	job.Action = deployment.ActionRecover
	res, diedAgain, err := r.execute(sig, t, job, beat, page)
	switch {
	case err != nil:
		return nil, err
	case diedAgain != "":
		return &deployment.Result{
			Touched: true,
			Message: "The deployment failed and what serves now is not known",
			Error: fmt.Sprintf("the deployment process %s, and the one sent to repair it %s: look at what runs by hand",
				died, diedAgain),
		}, nil
	case !res.Succeeded:
		res.Error = fmt.Sprintf("the deployment process %s; %s", died, res.Error)
	}
	return res, nil
}

// execute runs one wrktalk-deploy to its end. Died says in words how it ended
// when it gave no result. An error means that the run is over for this runner:
// its claim was lost, or the agent is being killed.
func (r *Runner) execute(sig Signals, t *staging.Task, job deployment.Job, beat *heartbeat, page *page) (res *deployment.Result, died string, err error) {
	said, err := openLog(t, job)
	if err != nil {
		return nil, "", err
	}
	defer said.Close()
	p, err := startProcess(r.Program, r.Env, job, said)
	if err != nil {
		return &deployment.Result{
			Message: "The deployment could not be started; nothing was changed",
			Error:   err.Error(),
		}, "", nil
	}

	limit := job.Timeout + job.RestoreTimeout + r.MaintenanceTimeout + margin
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	graceOver, release := afterDone(sig.Stop, r.ShutdownGrace)
	defer release()
	interrupt, grace := sig.Interrupt.Done(), graceOver.Done()
	fenced, kill := beat.fenced, sig.Kill.Done()
	cancelled := beat.wish.made
	if job.Action == deployment.ActionRecover {
		cancelled = nil // it restores already
	}
	for open := true; open; {
		select {
		case m, ok := <-p.messages:
			open = ok
			switch {
			case m.Event != nil:
				r.note(t, *m.Event)
			case m.Gate:
				if err := p.reply(page.enter(sig.Kill)); err != nil {
					r.Log.Warn("the deployment process does not listen", "task", t.Name, "error", err)
				}
			case m.Result != nil:
				res = m.Result
			}
		case <-cancelled:
			cancelled, interrupt, grace = nil, nil, nil
			r.event(t, task.PhaseRestoring, beat.wish.error()+": giving the deployment up")
			p.interrupt()
			deadline.Reset(job.RestoreTimeout + margin)
		case <-interrupt:
			cancelled = nil
			interrupt, grace = nil, nil
			r.event(t, task.PhaseRestoring, "the agent is stopping: giving the deployment up")
			p.interrupt()
			deadline.Reset(job.RestoreTimeout + margin)
		case <-grace:
			cancelled = nil
			interrupt, grace = nil, nil
			r.event(t, task.PhaseRestoring, fmt.Sprintf("the agent is stopping and %s have passed: giving the deployment up", r.ShutdownGrace))
			p.interrupt()
			deadline.Reset(job.RestoreTimeout + margin)
		case <-deadline.C:
			died = fmt.Sprintf("did not end within %s and was killed", limit)
			p.kill()
		case <-fenced:
			fenced, err = nil, taskdb.ErrFenced
			p.kill()
		case <-kill:
			kill, err = nil, errKilled
			p.kill()
		}
	}
	exit := <-p.done
	switch {
	case err != nil:
		return nil, "", err
	case res != nil:
		return res, "", nil
	case died == "":
		died = exitReason(exit)
	}
	return nil, died, nil
}

// page is the maintenance page of one run: put up when wrktalk-deploy is about
// to change what serves, and taken down when the run is over, whatever came of
// it. What goes wrong with it is said in the log, the result and the mail.
type page struct {
	r        *Runner
	t        *staging.Task
	on       bool
	troubles []string
}

func (p *page) enter(ctx context.Context) deployment.Reply {
	if !p.r.HasPage || p.on {
		return deployment.Reply{Proceed: true}
	}
	p.r.event(p.t, task.PhaseMaintenance, "putting the maintenance page up")
	p.on = true // also when it fails: leaving undoes what was begun
	if err := p.r.Maintenance.Enter(ctx, p.t.Name); err != nil {
		if p.r.MaintenanceRequired {
			return deployment.Reply{Reason: "maintenance is required and could not be entered: " + err.Error()}
		}
		p.trouble("the maintenance page could not be put up: " + err.Error())
	}
	p.r.reflectMaintenance()
	return deployment.Reply{Proceed: true}
}

func (p *page) leave() {
	if !p.on {
		return
	}
	p.r.event(p.t, task.PhaseMaintenance, "taking the maintenance page down")
	ctx, cancel := context.WithTimeout(context.Background(), p.r.MaintenanceTimeout)
	defer cancel()
	if err := p.r.Maintenance.Leave(ctx, p.t.Name); err != nil {
		p.trouble("the maintenance page could not be taken down: " + err.Error())
	}
	p.r.reflectMaintenance()
}

func (p *page) trouble(text string) {
	p.troubles = append(p.troubles, text)
	p.r.Log.Error(text, "task", p.t.Name)
}

// amend adds to the result what went wrong with the page.
func (p *page) amend(res *deployment.Result) {
	for _, text := range p.troubles {
		if res.Error != "" {
			res.Error += "; " + text
		} else {
			res.Message += "; " + text
		}
	}
}
