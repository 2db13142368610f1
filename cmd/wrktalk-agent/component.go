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

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"github.com/wrktalk/wrktalk-agent/fetcher"
	"github.com/wrktalk/wrktalk-agent/fetcher/unpack"
	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
	"github.com/wrktalk/wrktalk-agent/internal/residentset"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/stateformat"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/runner"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// textLogVar tells a supervised component that a person reads the log on a
// terminal, which it cannot see through its pipe.
const textLogVar = "WRKTALK_LOG_TEXT"

// fetchGrace is how long staging may go on after a stop was asked for; what it
// does not finish is taken up at the next start.
const fetchGrace = 5 * time.Second

// componentCommand returns `wrktalk-agent fetcher`, runner or notifier.
func componentCommand(name string, run func(*app) error) func(*app) *cobra.Command {
	return func(a *app) *cobra.Command {
		return &cobra.Command{
			Use: name, Short: "run this component alone, in the foreground", Args: arguments(0, 0),
			RunE: func(*cobra.Command, []string) error { return run(a) },
		}
	}
}

// component is what fetcher, runner and notifier have in common.
type component struct {
	cfg  *config.Config
	log  *slog.Logger
	pipe *controlpipe.Conn
	db   *taskdb.DB
	dir  *staging.Dir
	sig  runner.Signals
	// timeline copies what happens to tasks into the agent's own schema.
	timeline *taskdb.EventMirror
}

// startComponent prepares the component a.command names and returns what it
// needs, and a function that releases it.
func (a *app) startComponent(role staging.Role) (*component, func(), error) {
	pipe, err := controlpipe.FromEnv()
	if err != nil {
		return nil, nil, err
	}
	c := &component{pipe: pipe}
	cleanup := []func(){func() { pipe.Close() }, residentset.StartTrimming()}
	release := func() {
		for _, f := range slices.Backward(cleanup) {
			f()
		}
	}
	fail := func(err error) (*component, func(), error) {
		release()
		return nil, nil, err
	}
	if pipe.Supervised() {
		if c.cfg, err = config.LoadSnapshot(bytes.NewReader(pipe.Snapshot())); err != nil {
			return fail(usageError{err})
		}
		if os.Getenv(textLogVar) != "" {
			c.cfg.Log.Format = "text"
		}
	} else if c.cfg, err = a.config(); err != nil {
		return fail(err)
	}
	c.log = logger(a.stderr, c.cfg).With("component", a.command)
	if !pipe.Supervised() {
		for _, w := range c.cfg.Warnings() {
			c.log.Warn(w)
		}
		if err := stateformat.Check(c.cfg.StateDir); err != nil {
			return fail(usageError{err})
		}
		if err := stateformat.Record(c.cfg.StateDir); err != nil {
			c.log.Warn("an older version would not notice that this one was here", "error", err)
		}
	}
	var stop func()
	c.sig, stop = a.signals(pipe, c.log)
	cleanup = append(cleanup, stop)
	if c.db, err = a.database(context.Background(), c.cfg); err != nil {
		return fail(err)
	}
	cleanup = append(cleanup, c.db.Close)
	c.timeline = c.db.NewEventMirror(c.log)
	cleanup = append(cleanup, func() { c.timeline.Close(time.Second) })
	if err := staging.Check(c.cfg.Staging.Dir); err != nil {
		return fail(usageError{err})
	}
	if mount := os.Getenv(stagingMountVar); mount != "" {
		if err := staging.CheckMounted(c.cfg.Staging.Dir, mount); err != nil {
			return fail(err)
		}
	}
	if c.dir, err = staging.Open(c.cfg.Staging.Dir, role); err != nil {
		return fail(err)
	}
	cleanup = append(cleanup, func() { c.dir.Close() })
	if err := c.dir.RecoveryErr(); err != nil {
		c.log.Warn("something of a finished task is left; remove it by hand if this goes on", "error", err)
	}
	return c, release, nil
}

// signals turns what may end a component into contexts: SIGHUP, by which it is started
// anew with another configuration, is Idle, the first SIGTERM or SIGINT is Stop, the
// second Interrupt; a supervisor that is gone is Kill.
func (a *app) signals(pipe *controlpipe.Conn, log *slog.Logger) (runner.Signals, func()) {
	ch := make(chan os.Signal, 4)
	signal.Notify(ch, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	kill, cancelKill := context.WithCancel(context.Background())
	interrupt, cancelInterrupt := context.WithCancel(kill)
	stop, cancelStop := context.WithCancel(interrupt)
	idle, cancelIdle := context.WithCancel(stop)
	quit, done := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(done)
		for {
			select {
			case <-quit:
				return
			case <-pipe.ParentGone():
				log.Warn("the supervisor is gone: stopping")
				cancelKill()
				return
			case sig := <-ch:
				if sig == syscall.SIGHUP {
					log.Info("ending, to be started with the changed configuration; a deployment in flight goes on until its end", "signal", sig.String())
					cancelIdle()
					continue
				}
				if stop.Err() != nil {
					cancelInterrupt()
				}
				log.Info("stopping", "signal", sig.String())
				cancelStop()
			}
		}
	}()
	return runner.Signals{Idle: idle, Stop: stop, Interrupt: interrupt, Kill: kill}, func() {
		signal.Stop(ch)
		close(quit)
		<-done
		cancelKill()
	}
}

// owner names this agent to operators.
func owner() string { return fmt.Sprintf("%s/%d", hostname(), os.Getpid()) }

func hostname() string {
	if host, err := os.Hostname(); err == nil {
		return host
	}
	return "unknown host"
}

// longestStep is how long a component may be at work between two signs of life. What it
// does beside its heartbeats takes less: calls to the database and to a maintenance
// handler have limits, and to shred the files of a large release takes minutes.
const longestStep = 15 * time.Minute

// alive promises a sign of life after waiting so long, and working for a while.
func (c *component) alive(wait time.Duration) {
	c.pipe.Alive(wait + longestStep + 4*c.cfg.Maintenance.Timeout)
}

func (a *app) runFetcher() error {
	c, release, err := a.startComponent(staging.Fetcher)
	if err != nil {
		return err
	}
	defer release()
	d := deploymentOf(c.cfg)
	o := fetcher.Options{
		Target: d.target, Lease: c.cfg.Agent.Lease, Poll: c.cfg.Agent.PollInterval,
		Heartbeat: c.cfg.Agent.HeartbeatInterval, Owner: owner(),
		Limits:     unpackLimits(c.cfg),
		MaxOverdue: c.cfg.Agent.MaxOverdue, MaxAttempts: c.cfg.Agent.MaxAttempts,
		Timeline: c.timeline, Alive: c.alive, Metrics: c.pipe.Record, Log: c.log,
	}
	if d.KeepsBundles {
		o.Kept = func(version, sha256 string) bool {
			return protocol.Keeps(d.workingDir, protocol.BundleName(version, sha256), false)
		}
	}
	return fetcher.New(c.db, c.dir, o).Run(c.sig.Idle, fetchGrace, c.pipe.Ready)
}

func (a *app) runRunner() error {
	c, release, err := a.startComponent(staging.Runner)
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
	d := deploymentOf(c.cfg)
	if err := d.checkWorkingDir(); err != nil {
		return usageError{err}
	}
	o := runner.Options{
		Target: d.target, Program: program, Env: deployEnv(a.environ),
		Heartbeat: c.cfg.Agent.HeartbeatInterval, Lease: c.cfg.Agent.Lease, Rescan: c.cfg.Agent.PollInterval,
		ShutdownGrace: c.cfg.Agent.ShutdownGrace, MaxAttempts: c.cfg.Agent.MaxAttempts,
		Timeout: d.timeout, RestoreTimeout: d.restoreTimeout, Settings: d.settings,
		Maintenance: page, MaintenanceEnabled: maintenanceHandler(c.cfg) != maintenance.HandlerNone,
		MaintenanceHint:     maintenanceHint(c.cfg),
		MaintenanceRequired: c.cfg.Maintenance.Required, MaintenanceTimeout: 4 * c.cfg.Maintenance.Timeout,
		Timeline: c.timeline, Ready: c.pipe.Ready, Alive: c.alive, Metrics: c.pipe.Record, Log: c.log,
	}
	return runner.New(c.db, c.dir, o).Run(c.sig, func() { c.pipe.Ready("") })
}

// unpackLimits bound what an artifact may extract to.
func unpackLimits(cfg *config.Config) unpack.Limits {
	s := cfg.Staging
	return unpack.Limits{Bytes: s.MaxBytes, Entries: s.MaxEntries, Depth: s.MaxDepth, Ratio: s.MaxRatio}
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
			if err := unix.Access(path, unix.X_OK); err != nil {
				return "", fmt.Errorf("find %s: %s cannot be executed: %w", name, path, err)
			}
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
		"SSL_CERT_FILE", "SSL_CERT_DIR", "KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT", "KUBECONFIG",
		"DOCKER_HOST", "DOCKER_CONFIG", "DOCKER_CONTEXT", "DOCKER_CERT_PATH", "DOCKER_TLS_VERIFY", "DOCKER_API_VERSION",
	}
	var kept []string
	for _, v := range environ {
		name, _, _ := strings.Cut(v, "=")
		if name == "KUBECONFIG" {
			v = absoluteList(v)
		}
		if slices.Contains(names, name) {
			kept = append(kept, v)
		}
	}
	return kept
}

// absoluteList makes the paths of a variable such as KUBECONFIG, name=path:path,
// independent of the directory that a process works in.
func absoluteList(v string) string {
	name, list, _ := strings.Cut(v, "=")
	paths := filepath.SplitList(list)
	for i, path := range paths {
		if abs, err := filepath.Abs(path); err == nil && path != "" {
			paths[i] = abs
		}
	}
	return name + "=" + strings.Join(paths, string(filepath.ListSeparator))
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
		Handler: maintenanceHandler(cfg), FlagFile: m.FlagFile, ReloadCommand: m.ReloadCommand,
		EnterCommand: m.EnterCommand, LeaveCommand: m.LeaveCommand,
		HAProxySocket: m.HAProxySocket, HAProxyBackend: m.HAProxyBackend,
		HAProxyStateFile: m.HAProxyStateFile, Drain: drain,
		ProbeURL: m.ProbeURL, Timeout: m.Timeout,
		StateFile: filepath.Join(cfg.StateDir, "maintenance.json"),
		Logger:    log,
	})
}

func (a *app) runNotifier() error {
	c, release, err := a.startComponent(staging.Notifier)
	if err != nil {
		return err
	}
	defer release()
	mirror := c.db.NewDeliveryMirror(c.log, keepRecords)
	defer mirror.Close(time.Second)
	if err := pastRuns(c.cfg).Open(); err != nil {
		c.log.Warn("no run is kept for later", "error", err)
	}
	n := notifier.New(c.dir, notifierOptions(c, mirror))
	c.pipe.Ready("")
	return n.Run(c.sig.Idle)
}
