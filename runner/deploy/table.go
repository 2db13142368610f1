package deploy

import (
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// State is what a backend observes before anything is done.
type State string

// The states of a platform, as one deployment sees it.
const (
	StateAbsent      State = "absent"      // nothing serves, and nothing was begun
	StateServing     State = "serving"     // something serves, and nothing is under way
	StateInterrupted State = "interrupted" // a deployment of the agent was cut short and left something half applied
	StateApplied     State = "applied"     // this task has applied what it asks for already
	StateLocked      State = "locked"      // somebody else is changing it
	StateFailed      State = "failed"      // what this task applied last failed, and was not undone
)

// Request is what is asked for.
type Request string

// The requests.
const (
	RequestDeploy   Request = "deploy"
	RequestRollback Request = "rollback"
	RequestRecover  Request = "recover" // after the death of a deployment process
)

// Action is what the flow does.
type Action string

// The actions.
const (
	// ActApply checks the release, asks for approval and applies it. What does
	// not come up is replaced by what served before.
	ActApply Action = "apply"
	// ActApplyOrRestore is ActApply, but a release that is refused before anything
	// was changed does not leave the platform half applied: what served before is
	// restored all the same.
	ActApplyOrRestore Action = "apply, or restore when refused"
	// ActConfirm waits until what was applied is up, and restores what served
	// before when it does not come up.
	ActConfirm Action = "confirm"
	// ActRestore brings back what served before.
	ActRestore Action = "restore"
	// ActRefuse changes nothing and fails.
	ActRefuse Action = "refuse"
	// ActReport changes nothing, fails, and says what serves.
	ActReport Action = "report"
)

// Table is the decision: what to do, by what was observed and what is asked for.
var Table = map[State]map[Request]Action{
	StateAbsent:      {RequestDeploy: ActApply, RequestRollback: ActApply, RequestRecover: ActReport},
	StateServing:     {RequestDeploy: ActApply, RequestRollback: ActApply, RequestRecover: ActReport},
	StateInterrupted: {RequestDeploy: ActApplyOrRestore, RequestRollback: ActApplyOrRestore, RequestRecover: ActRestore},
	StateApplied:     {RequestDeploy: ActConfirm, RequestRollback: ActConfirm, RequestRecover: ActConfirm},
	StateLocked:      {RequestDeploy: ActRefuse, RequestRollback: ActRefuse, RequestRecover: ActReport},
	StateFailed:      {RequestDeploy: ActApplyOrRestore, RequestRollback: ActApplyOrRestore, RequestRecover: ActRestore},
}

// requestOf returns what the job asks for.
func requestOf(job protocol.Job) Request {
	switch {
	case job.Action == protocol.ActionRecover:
		return RequestRecover
	case job.Kind == task.KindRollback:
		return RequestRollback
	default:
		return RequestDeploy
	}
}
