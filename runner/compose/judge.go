package compose

import (
	"fmt"
	"time"

	"github.com/docker/docker/api/types/container"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// maxRestarts is how often a container may be restarted by its policy before
// its service counts as failed.
const maxRestarts = 3

// settleAgain is how long, at least, a container must run that was restarted
// during the run: a crash loop may take longer than the settle time for a turn.
const settleAgain = 10 * time.Second

// lingering is how long a container whose policy restarts it always may have
// ended: so long an engine takes to stop, and when it is back, so is the container.
const lingering = 15 * time.Second

// standing is how a container fares.
type standing int

const (
	pending standing = iota // may still come up
	up                      // runs, and healthy or long enough
	done                    // ended with 0, as a one-shot container should
	failed                  // will not come up
)

// verdict is what is thought of one container.
type verdict struct {
	standing standing
	service  string
	id       string
	name     string        // of the container
	reason   string        // for pending and failed: why, as in "service X REASON"
	crashed  bool          // for pending: it has ended and is about to be restarted
	retry    time.Duration // for pending: when time alone may change the verdict, 0 for never
}

// judge returns what to think of a container that had been restarted restarts
// times before the deployment began. settle is how long one without a health
// check must run.
func judge(c container.InspectResponse, restarts int, settle time.Duration, now time.Time) verdict {
	v := verdict{id: c.ID, name: c.Name}
	s := c.State
	if s == nil || c.HostConfig == nil {
		v.reason = "has no state yet"
		return v
	}
	if c.RestartCount < restarts {
		restarts = 0 // the count began anew with an explicit start
	}
	n := c.RestartCount - restarts
	if n > 0 {
		settle = max(settle, settleAgain)
	}
	if n > maxRestarts {
		v.standing = failed
		v.reason = fmt.Sprintf("keeps restarting (%d times so far, last exit code %d)", n, s.ExitCode)
		return v
	}
	policy := c.HostConfig.RestartPolicy
	switch s.Status {
	case container.StateRunning:
		return judgeRunning(v, s, settle, now)
	case container.StateCreated:
		v.reason = "was not started yet"
	case container.StateRestarting:
		v.crashed = true
		v.reason = fmt.Sprintf("is being restarted after it exited with code %d", s.ExitCode)
	case container.StateExited:
		oneShot := policy.IsNone() || policy.IsOnFailure()
		if ended, err := time.Parse(time.RFC3339Nano, s.FinishedAt); err == nil && !oneShot && now.Sub(ended) < lingering {
			v.reason = fmt.Sprintf("exited with code %d and is not restarted yet", s.ExitCode)
			v.retry = min(lingering-now.Sub(ended), lingering)
			return v
		}
		switch {
		case s.ExitCode == 0 && oneShot:
			v.standing = done
		case s.OOMKilled:
			v.standing, v.reason = failed, fmt.Sprintf("ran out of memory and was killed (exit code %d)", s.ExitCode)
		default:
			v.standing, v.reason = failed, fmt.Sprintf("exited with code %d", s.ExitCode)
		}
		if s.Error != "" && v.standing == failed {
			v.reason += ": " + oneLine(s.Error)
		}
	default: // paused, dead, removing
		v.standing, v.reason = failed, fmt.Sprintf("is %s", s.Status)
	}
	return v
}

func judgeRunning(v verdict, s *container.State, settle time.Duration, now time.Time) verdict {
	if s.Health != nil && s.Health.Status != container.NoHealthcheck && s.Health.Status != "" {
		switch s.Health.Status {
		case container.Healthy:
			v.standing = up
		case container.Unhealthy:
			v.standing, v.reason = failed, "is unhealthy"+lastCheck(s.Health)
		default:
			v.reason = "is not healthy yet" + lastCheck(s.Health)
		}
		return v
	}
	started, err := time.Parse(time.RFC3339Nano, s.StartedAt)
	if err != nil {
		v.standing = up // an engine without start time; running is all there is to know
		return v
	}
	if ran := now.Sub(started); ran < settle {
		// A clock of the engine that is ahead of ours must not stretch the wait.
		v.retry = min(settle-ran, settle)
		v.reason = fmt.Sprintf("has not run for %s yet", settle)
		return v
	}
	v.standing = up
	return v
}

// lastCheck returns what the last health check said, as the end of a sentence.
func lastCheck(h *container.Health) string {
	n := len(h.Log)
	if n == 0 || h.Log[n-1] == nil {
		return ""
	}
	last := oneLine(h.Log[n-1].Output)
	if last == "" {
		return ""
	}
	return ": " + task.SafeText(last, maxQuote)
}
