package runner

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

const (
	// defaultMargin is what a deployment may take beyond its own limits before it
	// is taken to hang.
	defaultMargin = time.Minute
	// defaultExitLimit is how long wrktalk-deploy may take to end once it has
	// reported its result.
	defaultExitLimit = 10 * time.Second
)

// errLapsed ends a deployment whose claim has not been confirmed for so long that
// another agent may take the task over. It is gone on with, from what the cluster
// then says, once the database has confirmed the claim.
var errLapsed = errors.New("the database has not confirmed the claim for too long; the deployment process was killed before another agent may take the task over")

// deploy has wrktalk-deploy carry out the job behind the maintenance page, and
// has what a dead wrktalk-deploy left repaired by another one. Again tells that
// an earlier attempt may have left the page up.
func (r *Runner) deploy(sig Signals, t *staging.Task, job deployment.Job, beat *heartbeat, again bool) (*deployment.Result, error) {
	page := &page{r: r, t: t, on: again && r.HasPage}
	res, err := r.attempt(sig, t, job, beat, page)
	if errors.Is(err, errKilled) {
		return nil, err // half-way: the page hides that until the next runner has been here
	}
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
	switch {
	case beat.lost():
		return nil, "", taskdb.ErrFenced
	case sig.Kill.Err() != nil:
		return nil, "", errKilled
	}
	said := r.openLog(t, job)
	defer said.Close()
	p, err := startProcess(r.Program, r.Env, job, said)
	if err != nil {
		return notStarted(job, err), "", nil
	}

	restore := job.RestoreTimeout
	if job.Action == deployment.ActionRecover {
		restore *= 2 // it may first have to wait for its server as long
	}
	limit := job.Timeout + restore + r.MaintenanceTimeout + r.margin
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	within := func(d time.Duration) {
		limit = d
		deadline.Reset(d)
	}
	graceOver, release := afterDone(sig.Stop, r.ShutdownGrace)
	defer release()
	interrupt, grace := sig.Interrupt.Done(), graceOver.Done()
	fenced, kill := beat.fenced, sig.Kill.Done()
	wished := beat.wish.made
	if job.Action == deployment.ActionRecover {
		wished = nil // it restores already, which is all that giving up could mean
	}
	// Two Helms must not meet on one release. Two Composes cannot, on one engine.
	lapse := time.NewTimer(beat.left(r.Lease))
	defer lapse.Stop()
	if job.Helm == nil {
		lapse.Stop()
	}
	giveUp := func(why string) {
		wished, interrupt, grace = nil, nil, nil
		if job.Action != deployment.ActionRecover {
			r.event(t, task.PhaseRestoring, why+": giving the deployment up")
			p.interrupt()
		}
		if res == nil {
			within(restore + r.margin)
		}
	}
	for open := true; open; {
		select {
		case m, ok := <-p.messages:
			open = ok
			switch {
			case m.Event != nil:
				r.note(t, *m.Event)
			case m.Gate:
				r.answer(sig, t, p, beat, page)
			case m.Result != nil:
				res = m.Result
				within(r.exitLimit)
			}
		case <-wished:
			giveUp(beat.wish.error())
		case <-interrupt:
			giveUp("the agent is stopping")
		case <-grace:
			giveUp(fmt.Sprintf("the agent is stopping and %s have passed", r.ShutdownGrace))
		case <-deadline.C:
			died = fmt.Sprintf("did not end within %s and was killed", limit)
			if res != nil {
				r.Log.Warn("the deployment process reported its result and "+died, "task", t.Name)
			}
			p.kill()
		case <-lapse.C:
			if res != nil {
				continue // it changes nothing any more
			}
			if left := beat.left(r.Lease); left > 0 {
				lapse.Reset(left)
				continue
			}
			err = errLapsed
			p.kill()
		case <-fenced:
			fenced, err = nil, taskdb.ErrFenced
			p.kill()
		case <-kill:
			kill, err = nil, errKilled
			p.kill()
		}
	}
	switch {
	case err != nil:
		return nil, "", err
	case res != nil:
		return res, "", nil
	case died == "":
		died = exitReason(p.exit)
	}
	return nil, died, nil
}

// notStarted is the result of a job whose process could not be started. One
// that was to repair leaves behind whatever the one before it left.
func notStarted(job deployment.Job, err error) *deployment.Result {
	res := &deployment.Result{
		Message: "The deployment could not be started; nothing was changed",
		Error:   err.Error(),
	}
	if job.Action == deployment.ActionRecover {
		res.Touched = true
		res.Message = "The deployment failed and what serves now is not known"
		res.Error += ": look at what runs by hand"
	}
	return res
}

// answer gives wrktalk-deploy leave to change what serves, or refuses it. A
// claim that was lost is refused by saying nothing: the caller sees it next.
func (r *Runner) answer(sig Signals, t *staging.Task, p *process, beat *heartbeat, page *page) {
	reply := deployment.Reply{Reason: beat.doubt(sig.Kill, r.Lease)}
	if reply.Reason == "" && !beat.lost() {
		reply = page.enter(sig.Kill)
	}
	if beat.lost() || sig.Kill.Err() != nil {
		return
	}
	if err := p.reply(reply); err != nil {
		r.Log.Warn("the deployment process does not listen", "task", t.Name, "error", err)
	}
}

// page is the maintenance page of one run: put up when wrktalk-deploy is about
// to change what serves, and taken down when the run is over, whatever came of
// it. What goes wrong with it is said in the log, the result and the mail.
type page struct {
	r        *Runner
	t        *staging.Task
	entered  bool
	on       bool // or half on, or left on by an earlier attempt
	troubles []string
}

func (p *page) enter(ctx context.Context) deployment.Reply {
	if !p.r.HasPage || p.entered {
		return deployment.Reply{Proceed: true}
	}
	p.r.event(p.t, task.PhaseMaintenance, "putting the maintenance page up")
	p.entered, p.on = true, true // also when it fails: leaving undoes what was begun
	if err := p.r.Maintenance.Enter(ctx, p.t.Name); err != nil {
		if p.r.MaintenanceRequired {
			return deployment.Reply{Reason: "maintenance is required and could not be entered: " + err.Error()}
		}
		p.trouble("the maintenance page could not be put up: " + err.Error())
	}
	p.r.reflectMaintenance(context.Background())
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
	p.r.reflectMaintenance(context.Background())
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
