package runner

import (
	"errors"
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

const (
	// defaultHangMargin is what a deployment may take beyond its own limits before
	// it is taken to hang.
	defaultHangMargin = time.Minute
	// defaultExitTimeout is how long wrktalk-deploy may take to end once it has
	// reported its result.
	defaultExitTimeout = 10 * time.Second
)

// errLapsed ends a deployment whose claim has not been confirmed for so long that
// another agent may take the task over. It is gone on with, from what the cluster
// then says, once the database has confirmed the claim.
var errLapsed = errors.New("the database has not confirmed the claim for too long; the deployment process was killed before another agent may take the task over")

// deploy has wrktalk-deploy carry out the job behind the maintenance page, and
// has what a dead wrktalk-deploy left repaired by others. PageLeft tells that
// an earlier attempt may have left the page up.
func (r *run) deploy(job protocol.Job, pageLeft bool) (*protocol.Result, error) {
	page := &page{run: r, on: pageLeft && r.MaintenanceEnabled}
	res, err := r.deployOrRepair(job, page)
	if errors.Is(err, errKilled) {
		return nil, err // interrupted: the page hides that until the next runner has been here
	}
	page.leave()
	if err != nil {
		return nil, err
	}
	page.addMaintenanceErrors(res)
	return res, nil
}

// deployOrRepair has a process that died followed by others which repair what it
// left, as many as may begin a task.
func (r *run) deployOrRepair(job protocol.Job, page *page) (*protocol.Result, error) {
	res, died, err := r.execute(job, page)
	if err != nil || died == "" {
		return res, err
	}
	first := died
	job.Action = protocol.ActionRecover
	for n := 1; n <= r.MaxAttempts; n++ {
		r.event(task.PhaseRestoring, "the deployment process "+died+"; finding out what it left")
		if n > 1 {
			retry.Sleep(r.sig.Kill, taskRetry.Delay(n-1))
		}
		if res, died, err = r.execute(job, page); err != nil {
			return nil, err
		}
		if died == "" {
			if !res.Succeeded {
				res.Error = fmt.Sprintf("the deployment process %s; %s", first, res.Error)
			}
			return res, nil
		}
	}
	return &protocol.Result{
		Changed: true,
		Message: "The deployment failed and what serves now is not known",
		Error: fmt.Sprintf("the deployment process %s, and the last of %d sent to repair it %s: look at what runs by hand",
			first, r.MaxAttempts, died),
	}, nil
}

// execute runs one wrktalk-deploy to its end. Died says how it ended when it
// gave no result. An error means that the run is over for this runner:
// its claim was lost, or the agent is being killed.
func (r *run) execute(job protocol.Job, page *page) (res *protocol.Result, died string, err error) {
	switch {
	case r.heartbeat.isFenced():
		return nil, "", taskdb.ErrFenced
	case r.sig.Kill.Err() != nil:
		return nil, "", errKilled
	}
	log := r.openLog(job)
	defer log.Close()
	p, err := startDeploy(r.Program, r.Env, job, log)
	if err != nil {
		return notStarted(job, err), "", nil
	}

	restore := job.RestoreTimeout
	if job.Action == protocol.ActionRecover {
		restore *= 2 // it may first have to wait for its server as long
	}
	limit := job.Timeout + restore + r.MaintenanceTimeout + r.hangMargin
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	setDeadline := func(d time.Duration) {
		limit = d
		deadline.Reset(d)
	}
	graceOver, release := background.Grace(r.sig.Stop, r.ShutdownGrace)
	defer release()
	interrupt, grace := r.sig.Interrupt.Done(), graceOver.Done()
	fenced, kill := r.heartbeat.fenced, r.sig.Kill.Done()
	cancelled := r.cancel.made
	if job.Action == protocol.ActionRecover {
		cancelled = nil // it restores already, which is all that giving up could mean
	}
	lapse := time.NewTimer(r.heartbeat.leaseRemaining())
	defer lapse.Stop()
	if !platform.Of(r.Target.Deployment).StopsAtLease {
		lapse.Stop()
	}
	giveUp := func(why string) {
		cancelled, interrupt, grace = nil, nil, nil
		if job.Action != protocol.ActionRecover {
			r.event(task.PhaseRestoring, why+": giving the deployment up")
			p.interrupt()
		}
		if res == nil {
			setDeadline(restore + r.hangMargin)
		}
	}
	for open := true; open; {
		select {
		case <-p.Done():
			open = false
		case m := <-p.messages:
			switch {
			case m.Event != nil:
				r.append(*m.Event)
			case m.ApprovalRequest:
				r.handleApproval(p, page)
			case m.Result != nil:
				res = m.Result
				setDeadline(r.exitTimeout)
			}
		case <-cancelled:
			giveUp(r.cancel.error())
		case <-interrupt:
			giveUp("the agent is stopping")
		case <-grace:
			giveUp(fmt.Sprintf("the agent is stopping and %s have passed", r.ShutdownGrace))
		case <-deadline.C:
			died = fmt.Sprintf("did not end within %s and was killed", limit)
			if res != nil {
				r.Log.Warn("the deployment process reported its result and "+died, "task", r.task.Name)
			}
			p.Kill()
		case <-lapse.C:
			if res != nil {
				continue // it changes nothing any more
			}
			if remaining := r.heartbeat.leaseRemaining(); remaining > 0 {
				lapse.Reset(remaining)
				continue
			}
			err = errLapsed
			p.Kill()
		case <-fenced:
			fenced, err = nil, taskdb.ErrFenced
			p.Kill()
		case <-kill:
			kill, err = nil, errKilled
			p.Kill()
		}
	}
	switch {
	case err != nil:
		return nil, "", err
	case res != nil:
		return res, "", nil
	case died == "":
		died = exitReason(p.State())
	}
	return nil, died, nil
}

// handleApproval lets wrktalk-deploy change what serves, or refuses it. A claim
// that was lost is refused by saying nothing: execute sees it next.
func (r *run) handleApproval(p *deployProcess, page *page) {
	reply := protocol.Approval{Reason: r.heartbeat.verifyClaim(r.sig.Kill)}
	if r.unverified {
		reply.Reason = ""
	}
	if reply.Reason == "" && !r.heartbeat.isFenced() {
		reply = page.enter(r.sig.Kill)
	}
	if r.heartbeat.isFenced() || r.sig.Kill.Err() != nil {
		return
	}
	if err := p.Send(reply); err != nil {
		r.Log.Warn("the deployment process does not listen", "task", r.task.Name, "error", err)
	}
}

// notStarted is the result of a job whose process could not be started. One
// that was to repair leaves behind whatever the one before it left.
func notStarted(job protocol.Job, err error) *protocol.Result {
	res := &protocol.Result{
		Message: "The deployment could not be started; nothing was changed",
		Error:   err.Error(),
	}
	if job.Action == protocol.ActionRecover {
		res.Changed = true
		res.Message = "The deployment failed and what serves now is not known"
		res.Error += ": look at what runs by hand"
	}
	return res
}
