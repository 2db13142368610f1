package supervisor

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"

	"github.com/oklog/run"
	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
	"github.com/wrktalk/wrktalk-agent/internal/process"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
	"golang.org/x/sys/unix"
)

// defaultStopTimeout is a Component's StopTimeout when it names none.
const defaultStopTimeout = 10 * time.Second

// Component is one process to keep alive.
//
// It must stop on SIGTERM and on SIGINT and take a second one of either as "at
// once", stop when its control pipe ends, and report its readiness there.
type Component struct {
	Name string   // the component key of its log lines
	Args []string // of the program, for example {"fetcher"}
	Env  []string // added to Config.Env, as it is; no secrets

	// StopTimeout is how long after SIGTERM its process group is killed: for
	// the runner the shutdown grace and what interrupting a deployment takes.
	// 0 is 10 seconds, negative is no limit. It is also how long the
	// component may outlive the supervisor.
	StopTimeout time.Duration
}

func (c Component) stopTimeout() time.Duration {
	if c.StopTimeout == 0 {
		return defaultStopTimeout
	}
	return c.StopTimeout
}

// Config is all the supervisor needs to know.
type Config struct {
	// Program is the path of the components' program; "" is the running one,
	// even when its file was replaced since.
	Program    string
	Components []Component // in the order of starting and of stopping
	Env        []string    // of every component, less what scrubEnv takes out

	// Snapshot is handed to each component over its control pipe. It holds secrets
	// and is kept in memory for restarts; at most controlpipe.MaxSnapshot bytes.
	Snapshot []byte

	// Reload returns what the configuration is now, when SIGHUP asks for it. Nil means
	// that nothing can be reloaded.
	Reload func() (Reloaded, error)

	// Log takes the supervisor's own records and wrapped lines of components.
	// It carries no component key yet and writes to Output, to which records
	// of components go as they are. One goroutine writes to both.
	Log    *slog.Logger
	Output io.Writer

	Restart RestartPolicy

	// Listen is the TCP address of /healthz, /readyz and /metrics, "" for none. When
	// it cannot be had, one error line says so, and it is tried again as long as the
	// supervisor runs. Who cannot do without calls the function Listen first, and
	// gives what it returns as Listener, which the supervisor then closes.
	Listen   string
	Listener net.Listener

	// AllowedHosts are names by which the pages may be asked for, besides IP
	// addresses, localhost, the host of Listen and this host's own name; "*" is
	// any. A name that an attacker lets point here would make the browser of
	// somebody on this network read them (DNS rebinding).
	AllowedHosts []string

	// Staging is the directory the components work in; /readyz names it, so that
	// who asks can tell this agent from another one. It may be "".
	Staging string

	// Metrics answers /metrics; nil means that there is no such page. Observe
	// takes the components' samples, and may be called by several goroutines at
	// once; what its error says is logged. It may be nil.
	Metrics http.Handler
	Observe func(telemetry.Sample) error

	NotifySocket string        // the service manager's, "" for none; see controlpipe.NotifySocket
	Watchdog     time.Duration // it expects to hear from us within this time; 0 for never
}

// Reloaded is what of a Config can change while it is used: the snapshot, and of the
// components, which stay the same ones, the environment and the time they have to stop.
type Reloaded struct {
	Snapshot   []byte
	Components []Component
	Warnings   []string // to be logged, such as what needs a restart
}

// Supervisor starts, watches, restarts and stops components.
type Supervisor struct {
	cfg     Config
	program string
	log     *slog.Logger // through logMux: never blocks
	logMux  *logMux
	status  *statusTable
	actors  []*actor

	stopOnce   sync.Once
	stop       chan struct{} // closed when all are to stop, in order
	stopNow    chan struct{} // closed at the second signal
	killNow    chan struct{} // closed at the third
	remaining  atomic.Int64  // actors that are not stopped
	allStopped chan struct{} // closed when all are
}

// New returns a supervisor that has started nothing yet.
func New(cfg Config) (*Supervisor, error) {
	if len(cfg.Components) == 0 {
		return nil, errors.New("configure supervisor: no components")
	}
	if cfg.Log == nil || cfg.Output == nil {
		return nil, errors.New("configure supervisor: no log")
	}
	if err := checkSnapshot(cfg.Snapshot); err != nil {
		return nil, fmt.Errorf("configure supervisor: %w", err)
	}
	program := cfg.Program
	if program == "" {
		program = process.Self
	}
	if _, err := exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("configure supervisor: find the components' program: %w", err)
	}
	cfg.Restart = cfg.Restart.withDefaults()

	s := &Supervisor{
		cfg: cfg, program: program,
		status:     newStatusTable(cfg.Components),
		logMux:     newLogMux(cfg.Output, cfg.Log),
		stop:       make(chan struct{}),
		stopNow:    make(chan struct{}),
		killNow:    make(chan struct{}),
		allStopped: make(chan struct{}),
	}
	s.log = s.logMux.logger()
	s.remaining.Store(int64(len(cfg.Components)))
	var predecessor *actor
	for i, c := range cfg.Components {
		a := &actor{
			Supervisor: s, Name: c.Name, index: i, predecessor: predecessor,
			restarts:   restartTracker{RestartPolicy: cfg.Restart},
			configured: configured{component: c, snapshot: cfg.Snapshot},
			reload:     make(chan struct{}, 1),
			started:    make(chan struct{}),
			stopped:    make(chan struct{}),
		}
		s.actors = append(s.actors, a)
		predecessor = a
	}
	return s, nil
}

func checkSnapshot(snapshot []byte) error {
	if len(snapshot) > controlpipe.MaxSnapshot {
		return fmt.Errorf("the configuration has %d bytes, more than %d", len(snapshot), controlpipe.MaxSnapshot)
	}
	return nil
}

// Statuses returns what is known of each component, in their order.
func (s *Supervisor) Statuses() []Status { return s.status.snapshot().list }

// Run starts the components and returns nil once they are stopped: when a
// SIGTERM or SIGINT arrives on signals, or signals is closed. The caller
// registers the channel (SIGTERM, SIGINT, SIGHUP; a buffer of four loses
// none) and keeps it registered until Run returns. Run may be called once.
//
// While it runs, writing to a closed standard output or error does not end the
// process: the agent goes on without a log.
func (s *Supervisor) Run(signals <-chan os.Signal) error {
	broken := make(chan os.Signal, 1)
	signal.Notify(broken, unix.SIGPIPE)
	defer signal.Stop(broken)
	go s.logMux.run()
	defer s.logMux.close()

	var g run.Group
	g.Add(func() error { return s.awaitSignal(signals) }, s.interrupt)
	g.Add(func() error { return s.escalate(signals) }, s.interrupt)
	for _, a := range s.actors {
		g.Add(a.execute, s.interrupt)
	}
	if s.cfg.Listen != "" {
		g.Add(s.serve, s.interrupt)
	}
	if s.cfg.NotifySocket != "" {
		g.Add(s.notifyManager, s.interrupt)
	}
	if os.Getpid() == 1 {
		g.Add(s.reapOrphans, s.interrupt)
	}
	return g.Run()
}

// interrupt asks every actor at once, as run.Group does; the order is kept by
// the components' actors, and the others last until those have stopped.
func (s *Supervisor) interrupt(error) {
	s.stopOnce.Do(func() {
		s.status.stop()
		close(s.stop)
	})
}
