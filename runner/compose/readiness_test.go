package compose

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
)

func TestAssess(t *testing.T) {
	now := time.Now()
	started := func(ago time.Duration) string { return now.Add(-ago).Format(time.RFC3339Nano) }
	health := func(status, output string) *container.Health {
		return &container.Health{Status: status, Log: []*container.HealthcheckResult{{Output: output}}}
	}
	const stableFor = 5 * time.Second
	for _, c := range []struct {
		name     string
		state    container.State
		policy   string
		restarts int
		lastExit int // as the engine's events told
		want     state
		reason   string
		retry    time.Duration
	}{
		{"stable", container.State{Status: "running", StartedAt: started(6 * time.Second)}, "always", 0, unknownExit, stateUp, "", 0},
		{"not stable yet", container.State{Status: "running", StartedAt: started(4 * time.Second)}, "", 0, unknownExit, statePending, "has not run for 5s", time.Second},
		{"the engine's clock is ahead", container.State{Status: "running", StartedAt: started(-time.Hour)}, "", 0, unknownExit, statePending, "", stableFor},
		{"restarted, not stable yet", container.State{Status: "running", StartedAt: started(6 * time.Second)}, "always", 1, 1, statePending, "keeps restarting (1 time so far, last exit code 1)", stableAfterRestart - 6*time.Second},
		{"restarted before anybody looked", container.State{Status: "running", StartedAt: started(6 * time.Second)}, "always", 40, unknownExit, statePending, "keeps restarting (40 times so far)", stableAfterRestart - 6*time.Second},
		{"restarted, stable", container.State{Status: "running", StartedAt: started(stableAfterRestart)}, "always", 40, 1, stateUp, "", 0},
		{"restarted, healthy", container.State{Status: "running", StartedAt: started(0), Health: health("healthy", "")}, "always", 7, 1, stateUp, "", 0},
		{"restarted, not healthy yet", container.State{Status: "running", StartedAt: started(time.Hour), Health: health("starting", "")}, "always", 7, 0, statePending, "keeps restarting (7 times so far, last exit code 0)", 0},
		{"loop by design, ended", container.State{Status: "restarting"}, "always", 9, 1, stateUp, "", 0},
		{"loop by design, runs again", container.State{Status: "running", StartedAt: started(0)}, "unless-stopped", 9, 0, stateUp, "", 0},
		{"healthy", container.State{Status: "running", Health: health("healthy", "")}, "", 0, unknownExit, stateUp, "", 0},
		{"starting", container.State{Status: "running", Health: health("starting", "no\nanswer")}, "", 0, unknownExit, statePending, "is not healthy yet: no answer", 0},
		{"unhealthy", container.State{Status: "running", Health: health("unhealthy", "x")}, "always", 0, unknownExit, stateFailed, "is unhealthy: x", 0},
		{"check switched off", container.State{Status: "running", StartedAt: started(time.Hour), Health: health("none", "")}, "", 0, unknownExit, stateUp, "", 0},
		{"created", container.State{Status: "created"}, "", 0, unknownExit, statePending, "was not started yet", 0},
		{"one-shot", container.State{Status: "exited"}, "no", 0, unknownExit, stateDone, "", 0},
		{"one-shot, retried", container.State{Status: "exited"}, "on-failure", 2, unknownExit, stateDone, "", 0},
		{"stopped server", container.State{Status: "exited"}, "always", 0, unknownExit, stateFailed, "exited with code 0", 0},
		{"stopped with the engine", container.State{Status: "exited", ExitCode: 143, FinishedAt: started(5 * time.Second)}, "unless-stopped", 0, unknownExit, statePending, "is not restarted yet", restartGrace - 5*time.Second},
		{"stopped by hand", container.State{Status: "exited", ExitCode: 143, FinishedAt: started(restartGrace)}, "unless-stopped", 0, unknownExit, stateFailed, "exited with code 143", 0},
		{"given up", container.State{Status: "exited", ExitCode: 1, FinishedAt: started(0)}, "on-failure", 1, unknownExit, stateFailed, "exited with code 1", 0},
		{"crashed", container.State{Status: "exited", ExitCode: 3, Error: "why"}, "no", 0, unknownExit, stateFailed, "exited with code 3: why", 0},
		{"out of memory", container.State{Status: "exited", ExitCode: 137, OOMKilled: true}, "no", 0, unknownExit, stateFailed, "ran out of memory", 0},
		{"restarting", container.State{Status: "restarting", ExitCode: 1}, "always", 3, unknownExit, statePending, "keeps restarting (3 times so far, last exit code 1)", 0},
		{"restart loop", container.State{Status: "restarting", ExitCode: 1}, "on-failure", 99, 0, statePending, "keeps restarting (99 times so far, last exit code 1)", 0},
		{"paused", container.State{Status: "paused"}, "", 0, unknownExit, stateFailed, "is paused", 0},
	} {
		got := assess(container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
			State: &c.state, RestartCount: c.restarts,
			HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyMode(c.policy)}},
		}}, c.lastExit, stableFor, now)
		if got.state != c.want || !strings.Contains(got.reason, c.reason) || got.retry != c.retry {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
