package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/fetcher"
	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/lean"
	"github.com/wrktalk/wrktalk-agent/internal/lifeline"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/runner"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

// textLogVar tells a supervised component that a person reads the log on a
// terminal, which it cannot see through its pipe.
const textLogVar = "WRKTALK_LOG_TEXT"

// fetchGrace is how long staging may go on after a stop was asked for; what it
// does not finish is taken up at the next start.
const fetchGrace = 5 * time.Second

// component is what fetcher, runner and notifier have in common.
type component struct {
	cfg  *config.Config
	log  *slog.Logger
	line *lifeline.Line
	db   *taskdb.DB
	dir  *staging.Dir
	sig  runner.Signals
	// timeline copies what happens to tasks into the agent's own schema.
	timeline *taskdb.Timeline
}

// startComponent prepares the component a.command names and returns what it
// needs, and a function that releases it.
func (a *app) startComponent(args []string, role staging.Role) (*component, func(), error) {
	line, err := lifeline.FromEnv()
	if err != nil {
		return nil, nil, err
	}
	c := &component{line: line}
	cleanup := []func(){func() { line.Close() }, lean.Start()}
	release := func() {
		for _, f := range slices.Backward(cleanup) {
			f()
		}
	}
	fail := func(err error) (*component, func(), error) {
		release()
		return nil, nil, err
	}
	if line.Supervised() {
		if _, err := a.parse(a.flags(), args, 0, 0); err != nil {
			return fail(err)
		}
		if c.cfg, err = config.LoadSnapshot(bytes.NewReader(line.Snapshot())); err != nil {
			return fail(usageError{err})
		}
		if os.Getenv(textLogVar) != "" {
			c.cfg.Log.Format = "text"
		}
	} else if c.cfg, err = a.plain(args); err != nil {
		return fail(err)
	}
	c.log = logger(a.stderr, c.cfg).With("component", a.command.name)
	if !line.Supervised() {
		for _, w := range c.cfg.Warnings() {
			c.log.Warn(w)
		}
	}
	var stop func()
	c.sig, stop = a.signals(line, c.log)
	cleanup = append(cleanup, stop)
	if c.db, err = a.database(context.Background(), c.cfg); err != nil {
		return fail(usageError{err})
	}
	cleanup = append(cleanup, c.db.Close)
	c.timeline = c.db.NewTimeline(c.log)
	cleanup = append(cleanup, func() { c.timeline.Close(time.Second) })
	if c.dir, err = staging.Open(c.cfg.Staging.Dir, role); err != nil {
		return fail(err)
	}
	cleanup = append(cleanup, func() { c.dir.Close() })
	if err := c.dir.Left(); err != nil {
		c.log.Warn("something of a finished task is left; remove it by hand if this goes on", "error", err)
	}
	return c, release, nil
}

// signals turns what may end a component into contexts: the first SIGTERM or
// SIGINT is Stop, the second Interrupt; a supervisor that is gone is Kill.
func (a *app) signals(line *lifeline.Line, log *slog.Logger) (runner.Signals, func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT)
	kill, cancelKill := context.WithCancel(context.Background())
	interrupt, cancelInterrupt := context.WithCancel(kill)
	stop, cancelStop := context.WithCancel(interrupt)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-line.Gone():
				log.Warn("the supervisor is gone: stopping")
				cancelKill()
				return
			case sig := <-ch:
				if stop.Err() != nil {
					cancelInterrupt()
				}
				log.Info("stopping", "signal", sig.String())
				cancelStop()
			}
		}
	}()
	return runner.Signals{Stop: stop, Interrupt: interrupt, Kill: kill}, func() {
		signal.Stop(ch)
		close(quit)
		<-done
		cancelKill()
	}
}

// owner names this agent to operators.
func owner() string {
	host, err := os.Hostname()
	if err != nil {
		host = "unknown host"
	}
	return fmt.Sprintf("%s/%d", host, os.Getpid())
}

// runFetcher is `wrktalk-agent fetcher`.
func runFetcher(a *app, args []string) error {
	c, release, err := a.startComponent(args, staging.Fetcher)
	if err != nil {
		return err
	}
	defer release()
	o := fetcher.Options{
		Target: target(c.cfg), Lease: c.cfg.Agent.Lease, Poll: c.cfg.Agent.PollInterval,
		Heartbeat: c.cfg.Agent.HeartbeatInterval, Owner: owner(),
		Limits: unpack.Limits{
			Bytes: c.cfg.Staging.MaxBytes, Entries: c.cfg.Staging.MaxEntries,
			Depth: c.cfg.Staging.MaxDepth, Ratio: c.cfg.Staging.MaxRatio,
		},
		MaxOverdue: c.cfg.Agent.MaxOverdue, MaxAttempts: c.cfg.Agent.MaxAttempts, Timeline: c.timeline, Meter: c.line.Measure, Log: c.log,
	}
	if c.cfg.Agent.DeploymentType == task.DeploymentDocker {
		releases := filepath.Join(c.cfg.Compose.WorkingDir, deployment.ReleasesDir)
		o.Kept = func(version, sha256 string) bool {
			info, err := os.Stat(filepath.Join(releases, deployment.BundleName(version, sha256)))
			return err == nil && info.IsDir()
		}
	}
	return fetcher.New(c.db, c.dir, o).Run(c.sig.Stop, fetchGrace, c.line.Ready)
}

// runRunner is `wrktalk-agent runner`.
func runRunner(a *app, args []string) error {
	c, release, err := a.startComponent(args, staging.Runner)
	if err != nil {
		return err
	}
	defer release()
	program, err := deployProgram()
	if err != nil {
		return err
	}
	page, err := maintenanceSwitch(c.cfg, c.log)
	if err != nil {
		return usageError{err}
	}
	defer page.Close()
	o := runner.Options{
		Target: target(c.cfg), Program: program, Env: deployEnv(a.environ),
		Heartbeat: c.cfg.Agent.HeartbeatInterval, Lease: c.cfg.Agent.Lease, Rescan: c.cfg.Agent.PollInterval,
		ShutdownGrace: c.cfg.Agent.ShutdownGrace, MaxAttempts: c.cfg.Agent.MaxAttempts,
		Timeout: c.cfg.Compose.Timeout, RestoreTimeout: c.cfg.Compose.RestoreTimeout,
		Maintenance: page, HasPage: c.cfg.Maintenance.ModeHandler != maintenance.HandlerNone,
		MaintenanceRequired: c.cfg.Maintenance.Required, MaintenanceTimeout: 4 * c.cfg.Maintenance.Timeout,
		Timeline: c.timeline, Ready: c.line.Ready, Meter: c.line.Measure, Log: c.log,
	}
	switch c.cfg.Agent.DeploymentType {
	case task.DeploymentDocker:
		o.Compose = &deployment.Compose{
			Project: c.cfg.Compose.ProjectName, WorkingDir: c.cfg.Compose.WorkingDir,
			Keep: c.cfg.Compose.KeepReleases, Settle: c.cfg.Compose.Settle,
		}
	case task.DeploymentKubernetes:
		o.Timeout, o.RestoreTimeout = c.cfg.Helm.Timeout, c.cfg.Helm.Timeout
		o.Helm = &deployment.Helm{
			Namespace: c.cfg.Kube.Namespace, Release: c.cfg.Helm.ReleaseName,
			Kubeconfig: c.cfg.Kube.Kubeconfig, Context: c.cfg.Kube.Context, HistoryMax: c.cfg.Helm.HistoryMax,
		}
	}
	return runner.New(c.db, c.dir, o).Run(c.sig, func() { c.line.Ready("") })
}

// deployProgram finds wrktalk-deploy: beside this program, where the packages
// put it, or on the PATH.
func deployProgram() (string, error) {
	const name = "wrktalk-deploy"
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find %s: %w", name, err)
	}
	for _, path := range []string{filepath.Join(filepath.Dir(self), name), "/usr/libexec/wrktalk-agent/" + name} {
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("find %s: it is neither beside %s nor on the PATH: install both programs of the agent", name, self)
	}
	return path, nil
}

// deployEnv is all that wrktalk-deploy sees of the environment: what the Docker
// and Kubernetes clients need to find their server. Nothing of it can be
// interpolated into a release.
func deployEnv(environ []string) []string {
	names := []string{
		"PATH", "HOME", "USER", "TMPDIR", "TZ", "LANG", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME",
		"HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy",
		"SSL_CERT_FILE", "SSL_CERT_DIR", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT",
		"DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DOCKER_API_VERSION",
	}
	var kept []string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if slices.Contains(names, name) {
			kept = append(kept, v)
		}
	}
	return kept
}

// maintenanceSwitch returns the switch of the maintenance page. It touches
// nothing yet.
func maintenanceSwitch(cfg *config.Config, log *slog.Logger) (*maintenance.Switch, error) {
	m := cfg.Maintenance
	drain := m.Drain
	if drain == 0 {
		drain = -1 // not at all; there, zero is the default
	}
	return maintenance.New(maintenance.Options{
		Handler: m.ModeHandler, FlagFile: m.FlagFile, ReloadCommand: m.ReloadCommand,
		EnterCommand: m.EnterCommand, LeaveCommand: m.LeaveCommand,
		HAProxySocket: m.HAProxySocket, HAProxyBackend: m.HAProxyBackend,
		HAProxyStateFile: m.HAProxyStateFile, Drain: drain,
		ProbeURL: m.ProbeURL, Timeout: m.Timeout,
		StateFile: filepath.Join(cfg.StateDir, "maintenance.json"),
		Logger:    log,
	})
}

// runNotifier is `wrktalk-agent notifier`.
func runNotifier(a *app, args []string) error {
	c, release, err := a.startComponent(args, staging.Notifier)
	if err != nil {
		return err
	}
	defer release()
	outbox := c.db.NewOutbox(c.log, keepRecords)
	defer outbox.Close(time.Second)
	n := notifier.New(c.dir, newBook(c.db, c.cfg), notifierOptions(c, outbox))
	c.line.Ready("")
	return n.Run(c.sig.Stop)
}
