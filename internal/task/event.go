package task

import "time"

// Phase is how far a run has got. The order of the constants is the order in
// which a run goes through them; a run may leave some out.
type Phase string

// The phases of a run, as the timeline, `status` and `deploy --wait` show them.
const (
	PhaseClaimed     Phase = "claimed"     // fetcher: the row is ours
	PhaseStaging     Phase = "staging"     // fetcher: streaming, verifying, extracting
	PhaseReady       Phase = "ready"       // fetcher: published
	PhaseVerifying   Phase = "verifying"   // runner: manifest against files
	PhasePreflight   Phase = "preflight"   // deploy: loads, renders, checks; touches nothing
	PhaseMaintenance Phase = "maintenance" // runner: page on or off
	PhasePulling     Phase = "pulling"     // deploy: images
	PhaseApplying    Phase = "applying"    // deploy: creating and starting
	PhaseWaiting     Phase = "waiting"     // deploy: until healthy
	PhaseRestoring   Phase = "restoring"   // deploy: the previous release comes back
	PhaseRecording   Phase = "recording"   // runner: outcome to the database
	PhaseNotifying   Phase = "notifying"   // notifier: mail
	PhaseDone        Phase = "done"
)

// Event is one line of a run's timeline. Text is fit to show; secrets are
// masked before an Event is made.
type Event struct {
	Time      time.Time `json:"time"`
	Component string    `json:"component"` // fetcher, runner, deploy, notifier
	Phase     Phase     `json:"phase"`
	Text      string    `json:"text,omitempty"`
}
