package supervisor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
	"github.com/wrktalk/wrktalk-agent/internal/process"
	"golang.org/x/sys/unix"
)

// configTimeout is how long a component may take to read its configuration.
const configTimeout = 30 * time.Second

// maxStatus bounds a line of a component's status, in bytes.
const maxStatus = 8 << 10

// child is one life of a component: one process.
type child struct {
	*process.Process
	stderr process.Tail       // valid once Done is closed
	alive  chan time.Duration // holds within which time the next sign of life is due, when that was said
}

// start starts component c with a configuration. onStatus is called for each status it
// reports.
func (s *Supervisor) start(c Component, snapshot []byte, onStatus func(controlpipe.Status)) (*child, error) {
	ch := &child{alive: make(chan time.Duration, 1)}
	p, err := process.Start(process.Command{
		Path: s.program, Args: c.Args,
		Env:         append(append(scrubEnv(s.cfg.Env), c.Env...), controlpipe.EnvVar+"=1"),
		DeathSignal: syscall.SIGTERM, OwnGroup: true,
		Input: controlpipe.SnapshotFD,
		Feed:  func(input *os.File) { s.sendConfig(input, c, snapshot) },
		Outputs: []process.Output{
			process.Lines(maxLine, s.forward(c.Name, slog.LevelInfo), 1),
			process.Lines(maxLine, tee(s.forward(c.Name, slog.LevelError), &ch.stderr), 2),
			process.Lines(maxStatus, s.readReports(c.Name, onStatus, ch.alive), controlpipe.StatusFD),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", c.Name, err)
	}
	ch.Process = p
	return ch, nil
}

// tee also has the tail keep the lines.
func tee(forward func([]byte, int), tail *process.Tail) func([]byte, int) {
	return func(line []byte, cut int) {
		tail.Add(line)
		forward(line, cut)
	}
}

// refused reports whether the process exited because it cannot work with its
// arguments or configuration; valid once Done is closed. The Go runtime exits
// with 2 as well, after a panic.
func (ch *child) refused() bool {
	return ch.State().ExitCode() == 2 && ch.stderr.Crash == ""
}

// lastWords returns what the process said last on its standard error, if that is
// no record of its log and no trace: a command's own error, "" for none.
func (ch *child) lastWords() string {
	if ch.stderr.Crash != "" || len(ch.stderr.Lines) == 0 {
		return ""
	}
	last := ch.stderr.Lines[len(ch.stderr.Lines)-1]
	if isRecord([]byte(last)) || strings.HasPrefix(last, "{") {
		return ""
	}
	return last
}

// stderrAttrs are the keys of a death report.
func (ch *child) stderrAttrs() []any {
	var attrs []any
	if ch.stderr.Crash != "" {
		attrs = append(attrs, "panic", ch.stderr.Crash)
	}
	if len(ch.stderr.Lines) > 0 {
		attrs = append(attrs, "stderr", strings.Join(ch.stderr.Lines, "\n"))
	}
	return attrs
}

// sendConfig gives the component its configuration. It ends at once when the
// component dies, or reads nothing for too long.
func (s *Supervisor) sendConfig(input *os.File, c Component, snapshot []byte) {
	_ = input.SetWriteDeadline(time.Now().Add(configTimeout))
	err := controlpipe.Send(input, c.stopTimeout(), snapshot)
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, os.ErrClosed) { // those say that it died
		s.log.Error("hand over the configuration", "component", c.Name, "error", err)
	}
}

// readReports returns what reads the lines in which a component reports. Into alive,
// which holds one value, it puts within which time the next sign of life is due.
func (s *Supervisor) readReports(name string, onStatus func(controlpipe.Status), alive chan time.Duration) func([]byte, int) {
	return func(line []byte, _ int) {
		r, err := controlpipe.ParseReport(line)
		switch {
		case err != nil:
			s.log.Warn("ignore a report that cannot be read", "component", name, "error", err)
		case r.Status != nil:
			onStatus(*r.Status)
		case r.Alive > 0:
			select { // the last one counts
			case <-alive:
			default:
			}
			alive <- r.Alive
		case s.cfg.Observe != nil:
			if err := s.cfg.Observe(*r.Sample); err != nil {
				s.log.Warn("ignore a sample", "component", name, "error", err)
			}
		}
	}
}
