package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/containerid"
	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/residentset"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/stateformat"
	"github.com/wrktalk/wrktalk-agent/internal/version"
	"github.com/wrktalk/wrktalk-agent/operator"
	"github.com/wrktalk/wrktalk-agent/supervisor"
)

// runCommand is `wrktalk-agent run`.
func runCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "run", Short: "supervise fetcher, runner and notifier: the agent as a service", Args: arguments(0, 0),
		RunE: func(*cobra.Command, []string) error { return a.runSupervisor() },
	}
}

func (a *app) runSupervisor() error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	if err := a.mayRun(cfg); err != nil {
		return err
	}
	lock, err := staging.LockAgent(cfg.Staging.Dir)
	if err != nil {
		return err
	}
	defer lock.Close()
	var listener net.Listener
	if listenRequired(cfg) {
		if listener, err = supervisor.Listen(cfg.HTTP.Listen); err != nil {
			return err
		}
		defer listener.Close()
	}
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer signal.Stop(signals)

	log := logger(a.stderr, cfg)
	for _, w := range cfg.Warnings() {
		log.Warn(w, "component", "supervisor")
	}
	if warning := operator.ExposedStaging(cfg.Staging.Dir); warning != "" {
		log.Warn(warning, "component", "supervisor")
	}
	if err := stateformat.Record(cfg.StateDir); err != nil {
		log.Warn("an older version would not notice that this one was here", "component", "supervisor", "error", err)
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
		Reload:       func() (supervisor.Reloaded, error) { return a.reload(cfg) },
		Log:          log,
		Output:       a.stderr,
		Listen:       cfg.HTTP.Listen,
		Listener:     listener,
		AllowedHosts: cfg.HTTP.AllowedHosts,
		Staging:      cfg.Staging.Dir,
		Metrics:      m,
		Observe:      m.Observe,
		NotifySocket: controlpipe.NotifySocket(),
		Watchdog:     controlpipe.WatchdogInterval(),
	})
	if err != nil {
		return err
	}
	log.Info("starting", "component", "supervisor", "version", version.Get().Version,
		"deployment_type", cfg.Agent.DeploymentType, "database", cfg.DB.Address(), "staging", cfg.Staging.Dir)
	if d := deploymentOf(cfg); d.KeepsBundles && containerid.Inside() {
		defer background.Start(context.Background(), func(ctx context.Context) { a.warnOfContainer(ctx, d, log) }).Stop()
	}
	defer residentset.StartTrimming()()
	return s.Run(signals)
}

// needRestart are the settings that the agent itself uses, not its components.
var needRestart = []string{"http.listen", "http.allowed_hosts", "log.level", "log.format"}

// reload loads the configuration again for an agent that was started with cfg.
func (a *app) reload(cfg *config.Config) (supervisor.Reloaded, error) {
	now, err := a.config()
	if err != nil {
		return supervisor.Reloaded{}, err
	}
	if now.Staging.Dir != cfg.Staging.Dir || now.StateDir != cfg.StateDir {
		return supervisor.Reloaded{}, fmt.Errorf("staging.dir or the state directory is another one now (%s, %s): restart the agent", now.Staging.Dir, now.StateDir)
	}
	if err := a.mayRun(now); err != nil {
		return supervisor.Reloaded{}, err
	}
	warnings := now.Warnings()
	was := map[string]string{}
	for _, s := range cfg.Settings() {
		was[s.Key] = s.Value
	}
	for _, s := range now.Settings() {
		if slices.Contains(needRestart, s.Key) && s.Value != was[s.Key] {
			warnings = append(warnings, "the agent itself uses the former "+s.Key+" until it is restarted")
		}
	}
	snapshot, err := now.Snapshot()
	return supervisor.Reloaded{Snapshot: snapshot, Components: components(a, now), Warnings: warnings}, err
}

// warnOfContainer says in the log what the container that the agent runs in lacks to
// deploy every release. A deployment finds it out for itself.
func (a *app) warnOfContainer(ctx context.Context, d deployment, log *slog.Logger) {
	_, warnings, err := a.checkPlatform(ctx, d)
	if err != nil && ctx.Err() == nil {
		warnings = append(warnings, err.Error())
	}
	for _, warning := range warnings {
		log.Warn(warning, "component", "supervisor")
	}
}

// mayRun returns why the agent cannot run as it is configured and installed, nil if
// nothing speaks against it. It asks nobody else and changes nothing: a database
// that is away is waited for. Each question is one of `check`, too.
func (a *app) mayRun(cfg *config.Config) error {
	if err := stateformat.Check(cfg.StateDir); err != nil {
		return usageError{err}
	}
	if err := staging.Check(cfg.Staging.Dir); err != nil {
		return usageError{err}
	}
	if err := deploymentOf(cfg).checkWorkingDir(); err != nil {
		return usageError{err}
	}
	if _, err := deployProgram(); err != nil {
		return err
	}
	if _, err := maintenanceSwitch(cfg, nil); err != nil {
		return usageError{err}
	}
	db, err := a.database(context.Background(), cfg)
	if err != nil {
		return err
	}
	db.Close()
	return nil
}

// listenRequired reports whether the agent must not run without its pages: where
// somebody has said at which address they are, somebody asks for them there. The
// default address may be that of another agent on the host.
func listenRequired(cfg *config.Config) bool {
	return cfg.HTTP.Listen != "" && !cfg.IsDefault("http.listen")
}

// stagingMountVar tells a supervised component the mount point that the staging
// directory was on when the agent started.
const stagingMountVar = "WRKTALK_STAGING_MOUNT"

// components lists what the supervisor keeps alive, in the order in which a task
// passes through them. They are stopped in this order too, so that the first
// thing to end is the claiming of new tasks.
func components(a *app, cfg *config.Config) []supervisor.Component {
	env := []string{stagingMountVar + "=" + staging.MountOf(cfg.Staging.Dir)}
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
	return cfg.Agent.ShutdownGrace + deploymentOf(cfg).restoreTimeout + 4*cfg.Maintenance.Timeout + 2*time.Minute
}
