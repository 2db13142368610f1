package main

import (
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/lean"
	"github.com/wrktalk/wrktalk-agent/internal/lifeline"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/version"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// runSupervisor is `wrktalk-agent run`.
func runSupervisor(a *app, args []string) error {
	cfg, err := a.plain(args)
	if err != nil {
		return err
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	log := logger(a.stderr, cfg)
	for _, w := range cfg.Warnings() {
		log.Warn(w, "component", "supervisor")
	}
	snapshot, err := cfg.Snapshot()
	if err != nil {
		return err
	}
	var s *supervisor.Supervisor
	m := newMetrics(cfg, func() []supervisor.Status { return s.Statuses() })
	s, err = supervisor.New(supervisor.Config{
		Components:   components(a, cfg),
		Env:          a.environ,
		Snapshot:     snapshot,
		Log:          log,
		Output:       a.stderr,
		Listen:       cfg.HTTP.Listen,
		Staging:      cfg.Staging.Dir,
		Metrics:      m,
		Observe:      m.Observe,
		NotifySocket: lifeline.NotifySocket(),
		Watchdog:     lifeline.WatchdogInterval(),
	})
	if err != nil {
		return err
	}
	log.Info("starting", "component", "supervisor", "version", version.Get().Version,
		"deployment_type", cfg.Agent.DeploymentType, "database", cfg.DB.Address(), "staging", cfg.Staging.Dir)
	defer lean.Start()()
	return s.Run(signals)
}

// components lists what the supervisor keeps alive, in the order of the data's
// way, which is the order of stopping as well: first no new task is claimed.
func components(a *app, cfg *config.Config) []supervisor.Component {
	var env []string
	if fault.Enabled {
		env = append(env, fault.EnvVar+"="+os.Getenv(fault.EnvVar))
	}
	if cfg.Log.Format == "auto" && isTerminal(a.stderr) {
		env = append(env, textLogVar+"=1")
	}
	return []supervisor.Component{
		{Name: "fetcher", Args: []string{"fetcher"}, Env: env, StopTimeout: fetchGrace + 5*time.Second},
		{Name: "runner", Args: []string{"runner"}, Env: env, StopTimeout: runnerStopTimeout(cfg)},
		{Name: "notifier", Args: []string{"notifier"}, Env: env, StopTimeout: 40 * time.Second},
	}
}

// runnerStopTimeout is the longest that stopping the runner may take by its own
// rules: the grace, restoring what served before, recording it.
func runnerStopTimeout(cfg *config.Config) time.Duration {
	restore := cfg.Compose.RestoreTimeout
	if cfg.Agent.DeploymentType == task.DeploymentKubernetes {
		restore = cfg.Helm.Timeout
	}
	return cfg.Agent.ShutdownGrace + restore + 4*cfg.Maintenance.Timeout + 2*time.Minute
}
