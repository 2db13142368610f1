package compose

import (
	"fmt"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// stableAfterRestart is how long a container without health check must run that
// the engine has restarted: a crash loop may take longer than StableFor for a turn.
// The engine itself takes a run of ten seconds for a success, after which it begins
// anew to count the pauses between restarts (moby, restartmanager.ShouldRestart).
const stableAfterRestart = 10 * time.Second

// restartGrace is how long a container whose policy restarts it always may have
// ended: so long an engine takes to stop, and when it is back, so is the container.
const restartGrace = 15 * time.Second

// state is how a container fares.
type state int

const (
	statePending state = iota // may still come up
	stateUp                   // runs, and healthy or long enough
	stateDone                 // ended with 0, as a one-shot container should
	stateFailed               // will not come up
)

// containerStatus is what is thought of one container.
type containerStatus struct {
	state      state
	service    string
	id         string
	name       string        // of the container
	reason     string        // for pending and failed: why, as in "service X REASON"
	restarts   int           // by its policy, since it was last started by hand or by Compose
	restarting bool          // for pending: it has ended and is about to be restarted
	retry      time.Duration // for pending: when time alone may change the status, 0 for never
}

// unknownExit stands for the exit code of a container that was not seen to end.
const unknownExit = -1

// assess returns what to think of a container whose last run ended with lastExit,
// or unknownExit. stableFor is how long one without a health check must run.
//
// How often a container was restarted decides nothing: one that crashes until its
// database is up is as good as any other in the end, and the deployment's timeout
// bounds how long that may take. What was restarted has to be healthy, or to run
// for stableAfterRestart, or to end with 0: then its policy makes a loop of it on
// purpose.
func assess(c container.InspectResponse, lastExit int, stableFor time.Duration, now time.Time) containerStatus {
	status := containerStatus{id: c.ID, name: c.Name, restarts: c.RestartCount}
	if c.State == nil || c.HostConfig == nil {
		status.reason = "has no state yet"
		return status
	}
	if c.State.Status != container.StateRunning {
		lastExit = c.State.ExitCode
	}
	if c.RestartCount > 0 {
		stableFor = max(stableFor, stableAfterRestart)
	}
	status = assessState(status, c, stableFor, now)
	if status.state != statePending || c.RestartCount == 0 {
		return status
	}
	ends := c.State.Status == container.StateRunning || c.State.Status == container.StateRestarting
	if ends && lastExit == 0 && !hasHealthcheck(c.State) {
		status.state, status.reason, status.retry = stateUp, "", 0
		return status
	}
	status.reason = fmt.Sprintf("keeps restarting (%s so far", deploy.Count(c.RestartCount, "time"))
	if lastExit != unknownExit {
		status.reason += fmt.Sprintf(", last exit code %d", lastExit)
	}
	status.reason += ")"
	return status
}

func assessState(status containerStatus, c container.InspectResponse, stableFor time.Duration, now time.Time) containerStatus {
	s := c.State
	policy := c.HostConfig.RestartPolicy
	switch s.Status {
	case container.StateRunning:
		return assessRunning(status, s, stableFor, now)
	case container.StateCreated:
		status.reason = "was not started yet"
	case container.StateRestarting:
		status.restarting = true
		status.reason = fmt.Sprintf("is being restarted after it exited with code %d", s.ExitCode)
	case container.StateExited:
		oneShot := policy.IsNone() || policy.IsOnFailure()
		if ended, err := time.Parse(time.RFC3339Nano, s.FinishedAt); err == nil && !oneShot && now.Sub(ended) < restartGrace {
			status.reason = fmt.Sprintf("exited with code %d and is not restarted yet", s.ExitCode)
			status.retry = min(restartGrace-now.Sub(ended), restartGrace)
			return status
		}
		switch {
		case s.ExitCode == 0 && oneShot:
			status.state = stateDone
		case s.OOMKilled:
			status.state, status.reason = stateFailed, fmt.Sprintf("ran out of memory and was killed (exit code %d)", s.ExitCode)
		default:
			status.state, status.reason = stateFailed, fmt.Sprintf("exited with code %d", s.ExitCode)
		}
		if s.Error != "" && status.state == stateFailed {
			status.reason += ": " + deploy.OneLine(s.Error)
		}
	default: // paused, dead, removing
		status.state, status.reason = stateFailed, fmt.Sprintf("is %s", s.Status)
	}
	return status
}

func assessRunning(status containerStatus, s *container.State, stableFor time.Duration, now time.Time) containerStatus {
	if hasHealthcheck(s) {
		switch s.Health.Status {
		case container.Healthy:
			status.state = stateUp
		case container.Unhealthy:
			status.state, status.reason = stateFailed, "is unhealthy"+lastCheck(s.Health)
		default:
			status.reason = "is not healthy yet" + lastCheck(s.Health)
		}
		return status
	}
	started, err := time.Parse(time.RFC3339Nano, s.StartedAt)
	if err != nil {
		status.state = stateUp // an engine without start time; running is all there is to know
		return status
	}
	if ran := now.Sub(started); ran < stableFor {
		// A clock of the engine that is ahead of ours must not stretch the wait.
		status.retry = min(stableFor-ran, stableFor)
		status.reason = fmt.Sprintf("has not run for %s yet", stableFor)
		return status
	}
	status.state = stateUp
	return status
}

// hasHealthcheck reports whether the health of the container decides.
func hasHealthcheck(s *container.State) bool {
	return s.Health != nil && s.Health.Status != container.NoHealthcheck && s.Health.Status != ""
}

// lastCheck returns what the last health check said, as the end of a sentence.
func lastCheck(h *container.Health) string {
	n := len(h.Log)
	if n == 0 || h.Log[n-1] == nil {
		return ""
	}
	last := deploy.OneLine(h.Log[n-1].Output)
	if last == "" {
		return ""
	}
	return ": " + task.SafeText(last, deploy.MaxQuote)
}
