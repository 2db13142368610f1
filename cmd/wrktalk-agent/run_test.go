package main

import (
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
)

// The agent that is always there links neither Helm nor Compose, nor what talks
// to Docker or Kubernetes: wrktalk-deploy alone does, while it deploys.
func TestTheAgentLinksNoDeployer(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", "github.com/wrktalk/wrktalk-agent/cmd/wrktalk-agent").Output()
	if err != nil {
		t.Fatal(err)
	}
	deps := strings.Fields(string(out))
	if len(deps) < 100 {
		t.Fatalf("only %d packages are listed: %s", len(deps), out)
	}
	for _, dep := range deps {
		for _, kept := range []string{
			"helm.sh/", "k8s.io/", "github.com/docker/", "github.com/moby/", "github.com/compose-spec/", "github.com/containerd/",
			"github.com/wrktalk/wrktalk-agent/runner/compose", "github.com/wrktalk/wrktalk-agent/runner/helm",
			"github.com/wrktalk/wrktalk-agent/internal/testenv",
		} {
			if strings.HasPrefix(dep, kept) {
				t.Errorf("wrktalk-agent links %s", dep)
			}
		}
	}
}

// What the supervisor gives the runner to stop in follows from the limits that
// are configured: no fixed time cuts a restore.
func TestDefect18StopLimitFollowsTheConfiguration(t *testing.T) {
	for _, c := range []struct {
		environ []string
		least   time.Duration // grace, restore and the page
	}{
		{[]string{"WRKTALK_AGENT_DEPLOYMENT_TYPE=docker"}, 10*time.Minute + 5*time.Minute},
		{[]string{"WRKTALK_AGENT_DEPLOYMENT_TYPE=docker", "WRKTALK_AGENT_COMPOSE_RESTORE_TIMEOUT=2h", "WRKTALK_AGENT_AGENT_SHUTDOWN_GRACE=1h"}, 3 * time.Hour},
		{[]string{"WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes", "WRKTALK_AGENT_HELM_TIMEOUT=90m"}, 100 * time.Minute},
		{[]string{"WRKTALK_AGENT_DEPLOYMENT_TYPE=docker", "WRKTALK_AGENT_MAINTENANCE_TIMEOUT=10m"}, 25 * time.Minute},
	} {
		environ := append([]string{
			"WRKTALK_AGENT_DB_HOST=localhost", "WRKTALK_AGENT_DB_NAME=wrktalk",
			"WRKTALK_AGENT_DB_USER=wrktalk", "WRKTALK_AGENT_DB_PASSWORD=x", "STATE_DIRECTORY=" + t.TempDir(), "RUNTIME_DIRECTORY=" + t.TempDir(),
		}, c.environ...)
		cfg, err := config.Load(config.Source{Environ: environ, Euid: 0})
		if err != nil {
			t.Fatal(err)
		}
		if got := runnerStopTimeout(cfg); got <= c.least {
			t.Errorf("%v: the runner gets %s, want more than %s", c.environ, got, c.least)
		}
	}
}
