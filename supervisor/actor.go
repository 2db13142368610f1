package supervisor

import (
	"cmp"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/controlpipe"
)

// actor keeps one component alive until the supervisor is to stop.
type actor struct {
	*Supervisor
	Name        string // of the component
	index       int
	predecessor *actor // the one started and stopped before this one; nil for the first

	restarts   restartTracker
	configured configured
	reload     chan struct{} // holds a value when the component is to be started anew

	started chan struct{} // closed after the first attempt to start
	stopped chan struct{} // closed when it is stopped for good
}

// configured is with what the component is started next.
type configured struct {
	mu        sync.Mutex
	component Component
	snapshot  []byte
}

func (c *configured) get() (Component, []byte) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.component, c.snapshot
}

// configure has the component started anew, once it is idle, with another
// configuration.
func (a *actor) configure(c Component, snapshot []byte) {
	a.configured.mu.Lock()
	a.configured.component, a.configured.snapshot = c, snapshot
	a.configured.mu.Unlock()
	select {
	case a.reload <- struct{}{}:
	default:
	}
}

func (a *actor) stopTimeout() time.Duration {
	c, _ := a.configured.get()
	return c.stopTimeout()
}

// execute is the actor's function in the run.Group. It ends only once the
// supervisor stops, whatever the component does: the group would stop all.
func (a *actor) execute() error {
	defer a.markStopped()
	if a.predecessor != nil {
		select {
		case <-a.predecessor.started:
		case <-a.stop:
			return nil
		}
	}
	for first := true; ; first = false {
		select {
		case <-a.stop:
			return nil
		default:
		}
		a.update(func(s *Status) { s.Ready, s.Reason = false, "has not reported yet" })
		select { // with what it is started now, it need not be started anew
		case <-a.reload:
		default:
		}
		component, snapshot := a.configured.get()
		ch, err := a.Supervisor.start(component, snapshot, a.reported)
		if first {
			close(a.started)
		}
		var delay time.Duration
		if err == nil {
			a.update(func(s *Status) { s.State, s.PID = StateRunning, ch.PID })
			a.log.Info("component started", "component", a.Name, "state", StateRunning, "pid", ch.PID)
			end := a.watch(ch)
			switch {
			case end == toStop:
				a.shutdown(ch)
				return nil
			case end == reloaded && (ch.State().Success() || hungUp(ch.State())):
				a.log.Info("component ended to be started with the changed configuration", "component", a.Name, "state", StateRestarting)
				continue
			}
			delay = a.died(ch)
		} else {
			delay = a.cannotStart(err)
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
			a.update(func(s *Status) { s.Restarts++ })
		case <-a.reload: // which may be what it needs
			t.Stop()
			a.update(func(s *Status) { s.Restarts++ })
		case <-a.stop:
			t.Stop()
			return nil
		}
	}
}

func (a *actor) update(f func(*Status)) { a.status.update(a.index, f) }

// reported takes over what the component said of itself.
func (a *actor) reported(st controlpipe.Status) {
	a.update(func(s *Status) {
		switch {
		case s.State == StateStopping:
		case st.Ready:
			s.Ready, s.Reason = true, ""
		default:
			s.Ready, s.Reason = false, cmp.Or(st.Reason, "gives no reason")
		}
	})
}

// lateBy is how much later than promised a sign of life may come.
const lateBy = 10 * time.Second

// hungUp reports whether a process ended by SIGHUP itself, which one does that was asked
// to end before it was ready to be.
func hungUp(s *os.ProcessState) bool {
	status, ok := s.Sys().(syscall.WaitStatus)
	return ok && status.Signaled() && status.Signal() == syscall.SIGHUP
}

// ending is what watch ends for.
type ending int

const (
	died     ending = iota // the component ended by itself
	reloaded               // it ended after it was asked to, for another configuration
	toStop                 // it is to be stopped
)

// watch watches the component until it ends or is to be stopped.
func (a *actor) watch(ch *child) (end ending) {
	livedLong := time.NewTimer(a.restarts.ResetAfter)
	defer livedLong.Stop()
	silent := time.NewTimer(0)
	defer silent.Stop()
	silent.Stop() // nothing is expected before the first promise
	var promised time.Duration
	late := false
	for {
		select {
		case <-ch.Done():
			return end
		case <-a.stop:
			return toStop
		case <-a.reload:
			end = reloaded
			ch.Signal(syscall.SIGHUP)
		case promised = <-ch.alive:
			silent.Reset(promised)
			late = false
		case <-silent.C:
			if !late { // perhaps all of us were stopped, with the machine
				late = true
				silent.Reset(min(promised, lateBy))
				continue
			}
			a.update(func(s *Status) { s.Hanging = true })
			a.log.Error("component hangs: it is killed and started anew", "component", a.Name, "state", StateRunning, "silent_for", promised)
			ch.Kill()
		case <-livedLong.C:
			if a.restarts.reset() {
				a.update(func(s *Status) { s.CrashLoop = false })
				a.log.Info("component is out of its crash loop", "component", a.Name, "state", StateRunning)
			}
		}
	}
}

// died reports a death and returns the delay before the next start.
func (a *actor) died(ch *child) time.Duration {
	lived := time.Since(ch.Started)
	refused := ch.refused()
	delay, crashLoop := a.restarts.died(lived, refused)
	attrs := append([]any{"lived", lived.Round(time.Millisecond)}, ch.stderrAttrs()...)
	a.report("component died", ch.State().String(), refused, crashLoop, delay, attrs...)
	if last := ch.lastWords(); last != "" {
		a.update(func(s *Status) { s.Reason += ": " + last })
	}
	return delay
}

// cannotStart does the same for a program that is missing, or a system that
// has no room for another process: both may be mended while we try.
func (a *actor) cannotStart(err error) time.Duration {
	delay, crashLoop := a.restarts.died(0, false)
	a.report("component cannot be started", err.Error(), false, crashLoop, delay)
	return delay
}

func (a *actor) report(msg, exit string, refused, crashLoop bool, delay time.Duration, attrs ...any) {
	pause := delay.Round(time.Millisecond)
	// First the status, then the log: who reads the line finds it so.
	a.update(func(s *Status) {
		s.State, s.PID, s.Ready, s.Hanging, s.CrashLoop = StateRestarting, 0, false, false, a.restarts.crashLoop
		s.Reason = fmt.Sprintf("%s (%s), next start in %s", msg, exit, pause)
	})
	a.log.Warn(msg, append([]any{
		"component", a.Name, "state", StateRestarting, "exit", exit,
		"deaths", a.restarts.deaths, "restart_in", pause,
	}, attrs...)...)
	if crashLoop {
		text := "component is in a crash loop"
		if refused {
			text = "component refuses its configuration or arguments: correct them and restart the agent"
		}
		a.log.Error(text,
			"component", a.Name, "state", StateRestarting, "deaths", a.restarts.deaths,
			"exit", exit, "restart_in", pause)
	}
}

// shutdown stops the component once those before it have stopped. A second
// request to stop does not wait for them, a third does not wait at all.
func (a *actor) shutdown(ch *child) {
	stopBegan := time.Now()
	a.update(func(s *Status) { s.State, s.Ready, s.Reason = StateStopping, false, "stopping" })
	stopNow, killNow := a.stopNow, a.killNow
	predecessorStopped := closed
	if a.predecessor != nil {
		predecessorStopped = a.predecessor.stopped
	}
	asked := false
	var limit <-chan time.Time
	ask := func() {
		ch.Signal(syscall.SIGTERM)
		if d := a.stopTimeout(); d > 0 && !asked {
			t := time.NewTimer(d)
			limit = t.C
		}
		asked, predecessorStopped = true, nil
	}
	for {
		select {
		case <-ch.Done():
			a.logStopped(ch, time.Since(stopBegan))
			return
		case <-predecessorStopped:
			ask()
		case <-stopNow:
			if !asked {
				ask()
			}
			// A SIGTERM beside one that is still pending is lost, a SIGINT is not:
			// components count both.
			ch.Signal(syscall.SIGINT)
			stopNow = nil
		case <-killNow:
			a.log.Error("component is killed: a third signal asked for it", "component", a.Name, "state", StateStopping)
			ch.Kill()
			predecessorStopped, stopNow, killNow, limit = nil, nil, nil, nil
		case <-limit:
			a.log.Error("component is killed: it did not stop in time", "component", a.Name, "state", StateStopping,
				"limit", a.stopTimeout())
			ch.Kill()
			predecessorStopped, stopNow, killNow, limit = nil, nil, nil, nil
		}
	}
}

func (a *actor) logStopped(ch *child, after time.Duration) {
	attrs := []any{
		"component", a.Name, "state", StateStopped,
		"exit", ch.State().String(), "after", after.Round(time.Millisecond),
	}
	if ch.State().Success() {
		a.log.Info("component stopped", attrs...)
		return
	}
	a.log.Warn("component stopped badly", append(attrs, ch.stderrAttrs()...)...)
}

// closed is closed: the first component waits for nobody.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// markStopped says that the component will not live again.
func (a *actor) markStopped() {
	a.update(func(s *Status) { s.State, s.PID, s.Ready, s.Reason = StateStopped, 0, false, "stopped" })
	close(a.stopped)
	if a.remaining.Add(-1) == 0 {
		close(a.allStopped)
	}
}
