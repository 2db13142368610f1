package supervisor

import (
	"cmp"
	"fmt"
	"syscall"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/lifeline"
)

// actor keeps one component alive until the supervisor is to stop.
type actor struct {
	*Supervisor
	Component
	index  int
	before *actor // the one started and stopped before this one; nil for the first

	streak  streak
	started chan struct{} // closed after the first attempt to start
	stopped chan struct{} // closed when it is stopped for good
}

// execute is the actor's function in the run.Group. It ends only once the
// supervisor stops, whatever the component does: the group would stop all.
func (a *actor) execute() error {
	defer a.isStopped()
	if a.before != nil {
		select {
		case <-a.before.started:
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
		ch, err := a.Supervisor.start(a.Component, a.reported)
		if first {
			close(a.started)
		}
		var delay time.Duration
		if err == nil {
			a.update(func(s *Status) { s.State, s.PID = StateRunning, ch.pid })
			a.log.Info("component started", "component", a.Name, "state", StateRunning, "pid", ch.pid)
			if !a.watch(ch) {
				a.shutdown(ch)
				return nil
			}
			delay = a.died(ch)
		} else {
			delay = a.cannotStart(err)
		}
		t := time.NewTimer(delay)
		select {
		case <-t.C:
			a.update(func(s *Status) { s.Restarts++ })
		case <-a.stop:
			t.Stop()
			return nil
		}
	}
}

func (a *actor) update(f func(*Status)) { a.board.update(a.index, f) }

// reported takes over what the component said of itself.
func (a *actor) reported(st lifeline.Status) {
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

// watch returns true when the component died, false when it is to be stopped.
func (a *actor) watch(ch *child) bool {
	steady := time.NewTimer(a.streak.Steady)
	defer steady.Stop()
	for {
		select {
		case <-ch.exited:
			return true
		case <-a.stop:
			return false
		case <-steady.C:
			if a.streak.steady() {
				a.update(func(s *Status) { s.CrashLoop = false })
				a.log.Info("component is out of its crash loop", "component", a.Name, "state", StateRunning)
			}
		}
	}
}

// died reports a death and returns the delay before the next start.
func (a *actor) died(ch *child) time.Duration {
	lived := time.Since(ch.started)
	refused := ch.refused()
	delay, looping := a.streak.died(lived, refused)
	attrs := append([]any{"lived", lived.Round(time.Millisecond)}, ch.words.attrs()...)
	a.report("component died", ch.state.String(), refused, looping, delay, attrs...)
	return delay
}

// cannotStart does the same for a program that is missing, or a system that
// has no room for another process: both may be mended while we try.
func (a *actor) cannotStart(err error) time.Duration {
	delay, looping := a.streak.died(0, false)
	a.report("component cannot be started", err.Error(), false, looping, delay)
	return delay
}

func (a *actor) report(msg, exit string, refused, looping bool, delay time.Duration, attrs ...any) {
	pause := delay.Round(time.Millisecond)
	// First the status, then the log: who reads the line finds it so.
	a.update(func(s *Status) {
		s.State, s.PID, s.Ready, s.CrashLoop = StateRestarting, 0, false, a.streak.looping
		s.Reason = fmt.Sprintf("%s (%s), next start in %s", msg, exit, pause)
	})
	a.log.Warn(msg, append([]any{
		"component", a.Name, "state", StateRestarting, "exit", exit,
		"deaths", a.streak.deaths, "restart_in", pause,
	}, attrs...)...)
	if looping {
		text := "component is in a crash loop"
		if refused {
			text = "component refuses its configuration or arguments: correct them and restart the agent"
		}
		a.log.Error(text,
			"component", a.Name, "state", StateRestarting, "deaths", a.streak.deaths,
			"exit", exit, "restart_in", pause)
	}
}

// shutdown stops the component once those before it have stopped. A second
// request to stop does not wait for its turn, a third does not wait at all.
func (a *actor) shutdown(ch *child) {
	stopBegan := time.Now()
	a.update(func(s *Status) { s.State, s.Ready, s.Reason = StateStopping, false, "stopping" })
	hurry, kill := a.hurry, a.kill
	turn := closed
	if a.before != nil {
		turn = a.before.stopped
	}
	asked := false
	var limit <-chan time.Time
	ask := func() {
		ch.signal(syscall.SIGTERM)
		if d := a.stopTimeout(); d > 0 && !asked {
			t := time.NewTimer(d)
			limit = t.C
		}
		asked, turn = true, nil
	}
	for {
		select {
		case <-ch.exited:
			a.hasStopped(ch, time.Since(stopBegan))
			return
		case <-turn:
			ask()
		case <-hurry:
			if !asked {
				// Two SIGTERMs in a row are delivered as one; a SIGINT is not
				// lost, and components count both.
				ask()
				ch.signal(syscall.SIGINT)
			} else {
				ask()
			}
			hurry = nil
		case <-kill:
			a.log.Error("component is killed: a third signal asked for it", "component", a.Name, "state", StateStopping)
			ch.killGroup()
			turn, hurry, kill, limit = nil, nil, nil, nil
		case <-limit:
			a.log.Error("component is killed: it did not stop in time", "component", a.Name, "state", StateStopping,
				"limit", a.stopTimeout())
			ch.killGroup()
			turn, hurry, kill, limit = nil, nil, nil, nil
		}
	}
}

func (a *actor) hasStopped(ch *child, after time.Duration) {
	attrs := []any{
		"component", a.Name, "state", StateStopped,
		"exit", ch.state.String(), "after", after.Round(time.Millisecond),
	}
	if ch.state.Success() {
		a.log.Info("component stopped", attrs...)
		return
	}
	a.log.Warn("component stopped badly", append(attrs, ch.words.attrs()...)...)
}

// closed is a turn that has come.
var closed = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

// isStopped says that the component will not live again.
func (a *actor) isStopped() {
	a.update(func(s *Status) { s.State, s.PID, s.Ready, s.Reason = StateStopped, 0, false, "stopped" })
	close(a.stopped)
	if a.left.Add(-1) == 0 {
		close(a.allStopped)
	}
}
