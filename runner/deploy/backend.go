package deploy

import (
	"context"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Backend is one platform, for one job. Its methods are called from one goroutine,
// at most once each unless they say otherwise, in the order in which they stand
// here; which of them are called, the flow decides. Each returns soon after ctx has
// ended. Texts that they return are sentences or parts of sentences, on one line
// and without the job's release in front; the flow masks them.
type Backend interface {
	// Names returns the words of the platform. It may be called at any time.
	Names() Names

	// Observe connects to the platform, keeps other deployments of the same target
	// away until Close, and finds out how things stand. It changes nothing that
	// serves. What is busy or away is waited for where waiting makes sense. Of a job
	// that does not say which release it means (a rollback to the one before), it
	// completes job.Release.
	Observe(ctx context.Context) (Observation, error)

	// Preflight does all that can be done beforehand: it checks the release, and
	// fetches what it needs. It changes nothing that serves. Every error is a refusal.
	Preflight(ctx context.Context) error

	// Apply makes the release serve, and waits until it is up. Together with an
	// error it says in Applied.Changed whether anything may have been changed.
	Apply(ctx context.Context) (Applied, error)

	// Confirm waits until a release is up that was found in StateApplied. Together with
	// an error it returns what is known of the release.
	Confirm(ctx context.Context) (Applied, error)

	// Diagnose finds out why Apply, Confirm or Restore failed with err. It comes
	// before anything is restored, which removes the evidence. It may be called
	// twice: after Restore as well.
	Diagnose(ctx context.Context, err error) Diagnosis

	// Former observes anew and returns what to go back to.
	Former(ctx context.Context) (Former, error)

	// Restore makes the release that Former named serve again, and waits until it
	// is up.
	Restore(ctx context.Context, back Former) (Applied, error)

	// Remove removes a first installation that failed, but no data.
	Remove(ctx context.Context) error

	// CleanUp records what serves now, and removes what nobody needs any more. What
	// goes wrong with it is noted: it changes nothing about the outcome. Restored
	// tells that a former release serves.
	CleanUp(ctx context.Context, restored bool)

	// Close gives up what Preflight prepared and nobody applied, and lets go of the
	// platform. It is called once, and last.
	Close()
}

// Factory makes the backend of a job, and refuses one whose settings it cannot
// work with. The job is the flow's as well: what Observe completes in its Release,
// the flow's sentences say.
type Factory func(job *protocol.Job, report *Report) (Backend, error)

// Names are the words of a platform within the flow's sentences.
type Names struct {
	Place   string // where a person looks: "the host", "the cluster"
	Removed string // a first installation that is gone: "it was removed"
}

// Observation is how things stand before anything is done.
type Observation struct {
	State State
	// Reason is, for StateLocked, why nothing may be changed now; otherwise "" or more
	// that a person should know when nothing is done.
	Reason string
	// Leftover names what an interrupted deployment left, as "revision 2".
	Leftover string
	Serves   Serves
	// Unsettled says, when it is not sure what serves, which failure was never undone;
	// otherwise "". As "revision 3 failed and was not undone".
	Unsettled string
	// Restored tells that what serves was brought back by this task.
	Restored bool
}

// Serves says what serves; the zero value is nothing.
type Serves struct {
	Version string
	Detail  string // how "release 2.0 serves" goes on, as " as revision 3"
	// Revision is Helm's, 0 for none.
	Revision int
}

// Applied is what Apply, Confirm and Restore came to.
type Applied struct {
	Changed  bool   // something may have been changed
	Revision int    // Helm's, 0 for none
	Detail   string // how "release 2.0 is up" goes on, as ": 3 services"
}

// Diagnosis is why a release did not come up.
type Diagnosis struct {
	Cause string   // "" when nothing is seen to be wrong
	Late  bool     // the time was up
	Tail  []string // last lines of the log of what is to blame, oldest first
	// Up tells that the release is up after all: what applied it only could not
	// say so any more.
	Up *Applied
}

// Former is what a failed deployment gives way to.
type Former struct {
	Way Way
	// Version is, for BringBack, the release to restore.
	Version string
	// Revision is, for BringBack, Helm's number of it.
	Revision int
	// Text says, for Leave, why nothing is restored, as the end of a sentence about
	// the failed release.
	Text string
	// Serves is, for Leave, what serves; nil when nothing is to be said about that.
	Serves *Serves
}

// Way is how a failed deployment is undone.
type Way int

// The ways.
const (
	Leave     Way = iota // there is nothing to go back to: what is there stays
	BringBack            // the former release is restored
	RemoveAll            // the failed release was the first one, and is removed
)
