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
	"github.com/wrktalk/wrktalk-agent/internal/lifeline"
	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"golang.org/x/sys/unix"
)

// DefaultStopTimeout is a Component's StopTimeout when it names none.
const DefaultStopTimeout = 10 * time.Second

// Component is one process to keep alive.
//
// It must stop on SIGTERM and on SIGINT and take a second one of either as "at
// once", stop when its lifeline ends, and report its readiness there.
type Component struct {
	Name string   // the component key of its log lines
	Args []string // of the program, for example {"fetcher"}
	Env  []string // added to Config.Env, as it is; no secrets

	// StopTimeout is how long after SIGTERM its process group is killed: for
	// the runner the shutdown grace and what interrupting a deployment takes.
	// 0 is DefaultStopTimeout, negative is no limit. It is also how long the
	// component may outlive the supervisor.
	StopTimeout time.Duration
}

func (c Component) stopTimeout() time.Duration {
	if c.StopTimeout == 0 {
		return DefaultStopTimeout
	}
	return c.StopTimeout
}

// Config is all the supervisor needs to know.
type Config struct {
	// Program is the path of the components' program; "" is the running one,
	// even when its file was replaced since.
	Program    string
	Components []Component // in the order of starting and of stopping
	Env        []string    // of every component; ScrubEnv is applied to it

	// Snapshot is handed to each component over its lifeline. It holds secrets
	// and is kept in memory for restarts; at most lifeline.MaxSnapshot bytes.
	Snapshot []byte

	// Log takes the supervisor's own records and wrapped lines of components.
	// It carries no component key yet and writes to Output, to which records
	// of components go as they are. One goroutine writes to both.
	Log    *slog.Logger
	Output io.Writer

	Backoff Backoff

	// Listen is the TCP address of /healthz, /readyz and /metrics, "" for none.
	// When it cannot be had, one error line says so and the supervisor goes on:
	// monitoring must not stop deployments.
	Listen string

	// Staging is the directory the components work in; /readyz names it, so that
	// who asks can tell this agent from another one. It may be "".
	Staging string

	// Metrics answers /metrics; nil means that there is no such page. Observe
	// takes the components' samples, and may be called by several goroutines at
	// once; what its error says is logged. It may be nil.
	Metrics http.Handler
	Observe func(meter.Sample) error

	NotifySocket string        // the service manager's, "" for none; see lifeline.NotifySocket
	Watchdog     time.Duration // it expects to hear from us within this time; 0 for never
}

// Supervisor starts, watches, restarts and stops components.
type Supervisor struct {
	cfg     Config
	program string
	log     *slog.Logger // through the relay: never blocks
	relay   *relay
	board   *board
	actors  []*actor
	nursery nursery

	stopOnce   sync.Once
	stop       chan struct{} // closed when all are to stop, in order
	hurry      chan struct{} // closed at the second signal
	kill       chan struct{} // closed at the third
	left       atomic.Int64  // actors that are not stopped
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
	if len(cfg.Snapshot) > lifeline.MaxSnapshot {
		return nil, fmt.Errorf("configure supervisor: the configuration has %d bytes, more than %d", len(cfg.Snapshot), lifeline.MaxSnapshot)
	}
	program := cfg.Program
	if program == "" {
		program = selfProgram
	}
	if _, err := exec.LookPath(program); err != nil {
		return nil, fmt.Errorf("configure supervisor: find the components' program: %w", err)
	}
	cfg.Backoff = cfg.Backoff.withDefaults()

	s := &Supervisor{
		cfg: cfg, program: program,
		board:      newBoard(cfg.Components),
		relay:      newRelay(cfg.Output, cfg.Log),
		nursery:    nursery{known: map[int]bool{}},
		stop:       make(chan struct{}),
		hurry:      make(chan struct{}),
		kill:       make(chan struct{}),
		allStopped: make(chan struct{}),
	}
	s.log = s.relay.logger()
	s.left.Store(int64(len(cfg.Components)))
	var before *actor
	for i, c := range cfg.Components {
		a := &actor{
			Supervisor: s, Component: c, index: i, before: before,
			streak:  streak{Backoff: cfg.Backoff},
			started: make(chan struct{}),
			stopped: make(chan struct{}),
		}
		s.actors = append(s.actors, a)
		before = a
	}
	return s, nil
}

// Statuses returns what is known of each component, in their order.
func (s *Supervisor) Statuses() []Status { return s.board.view().list }

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
	go s.relay.run()
	defer s.relay.close()

	var g run.Group
	g.Add(func() error { return s.awaitSignal(signals) }, s.interrupt)
	g.Add(func() error { return s.escalate(signals) }, s.interrupt)
	for _, a := range s.actors {
		g.Add(a.execute, s.interrupt)
	}
	if ln := s.listen(); ln != nil {
		g.Add(func() error { return s.serve(ln) }, s.interrupt)
	}
	if s.cfg.NotifySocket != "" {
		g.Add(s.announce, s.interrupt)
	}
	if os.Getpid() == 1 {
		g.Add(s.reapStrays, s.interrupt)
	}
	return g.Run()
}

// interrupt asks every actor at once, as run.Group does; the order is kept by
// the components' actors, and the others last until those have stopped.
func (s *Supervisor) interrupt(error) {
	s.stopOnce.Do(func() {
		s.board.stop()
		close(s.stop)
	})
}

// listen returns nil when there is nothing to serve on.
func (s *Supervisor) listen() net.Listener {
	if s.cfg.Listen == "" {
		return nil
	}
	ln, err := net.Listen("tcp", s.cfg.Listen)
	if err != nil {
		s.log.Error("serve health: go on without; free the address or set http.listen and restart the agent",
			"component", "supervisor", "error", err)
		return nil
	}
	s.log.Info("health is served", "component", "supervisor", "address", ln.Addr().String())
	return ln
}
