package compose

import (
	"strings"
	"testing"
	"time"

	"github.com/docker/docker/api/types/container"
)

func TestJudge(t *testing.T) {
	now := time.Now()
	started := func(ago time.Duration) string { return now.Add(-ago).Format(time.RFC3339Nano) }
	health := func(status, output string) *container.Health {
		return &container.Health{Status: status, Log: []*container.HealthcheckResult{{Output: output}}}
	}
	const settle = 5 * time.Second
	for _, c := range []struct {
		name     string
		state    container.State
		policy   string
		restarts int // now
		before   int
		want     standing
		reason   string
		retry    time.Duration
	}{
		{"settled", container.State{Status: "running", StartedAt: started(6 * time.Second)}, "always", 0, 0, up, "", 0},
		{"settling", container.State{Status: "running", StartedAt: started(4 * time.Second)}, "", 0, 0, pending, "has not run for 5s", time.Second},
		{"the engine's clock is ahead", container.State{Status: "running", StartedAt: started(-time.Hour)}, "", 0, 0, pending, "", settle},
		{"restarted, settling", container.State{Status: "running", StartedAt: started(6 * time.Second)}, "always", 1, 0, pending, "has not run for 10s", settleAgain - 6*time.Second},
		{"restarted, settled", container.State{Status: "running", StartedAt: started(settleAgain)}, "always", 3, 0, up, "", 0},
		{"healthy", container.State{Status: "running", Health: health("healthy", "")}, "", 0, 0, up, "", 0},
		{"starting", container.State{Status: "running", Health: health("starting", "no\nanswer")}, "", 0, 0, pending, "is not healthy yet: no answer", 0},
		{"unhealthy", container.State{Status: "running", Health: health("unhealthy", "x")}, "always", 0, 0, failed, "is unhealthy: x", 0},
		{"check switched off", container.State{Status: "running", StartedAt: started(time.Hour), Health: health("none", "")}, "", 0, 0, up, "", 0},
		{"created", container.State{Status: "created"}, "", 0, 0, pending, "was not started yet", 0},
		{"one-shot", container.State{Status: "exited"}, "no", 0, 0, done, "", 0},
		{"one-shot, retried", container.State{Status: "exited"}, "on-failure", 2, 0, done, "", 0},
		{"stopped server", container.State{Status: "exited"}, "always", 0, 0, failed, "exited with code 0", 0},
		{"stopped with the engine", container.State{Status: "exited", ExitCode: 143, FinishedAt: started(5 * time.Second)}, "unless-stopped", 0, 0, pending, "is not restarted yet", lingering - 5*time.Second},
		{"stopped by hand", container.State{Status: "exited", ExitCode: 143, FinishedAt: started(lingering)}, "unless-stopped", 0, 0, failed, "exited with code 143", 0},
		{"given up", container.State{Status: "exited", ExitCode: 1, FinishedAt: started(0)}, "on-failure", 1, 0, failed, "exited with code 1", 0},
		{"crashed", container.State{Status: "exited", ExitCode: 3, Error: "why"}, "no", 0, 0, failed, "exited with code 3: why", 0},
		{"out of memory", container.State{Status: "exited", ExitCode: 137, OOMKilled: true}, "no", 0, 0, failed, "ran out of memory", 0},
		{"restarting", container.State{Status: "restarting", ExitCode: 1}, "always", 3, 0, pending, "is being restarted", 0},
		{"restart loop", container.State{Status: "restarting", ExitCode: 1}, "always", 4, 0, failed, "keeps restarting", 0},
		{"restarted in the past", container.State{Status: "running", StartedAt: started(time.Hour)}, "always", 40, 40, up, "", 0},
		{"counted anew", container.State{Status: "restarting"}, "always", 4, 40, failed, "keeps restarting", 0},
		{"paused", container.State{Status: "paused"}, "", 0, 0, failed, "is paused", 0},
	} {
		got := judge(container.InspectResponse{ContainerJSONBase: &container.ContainerJSONBase{
			State: &c.state, RestartCount: c.restarts,
			HostConfig: &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: container.RestartPolicyMode(c.policy)}},
		}}, c.before, settle, now)
		if got.standing != c.want || !strings.Contains(got.reason, c.reason) || got.retry != c.retry {
			t.Errorf("%s: %+v", c.name, got)
		}
	}
}
