package supervisor

import (
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
)

// RestartPolicy says how dead components are restarted. Zero fields take their
// default.
type RestartPolicy struct {
	Min time.Duration // delay after the first death; 100 ms
	Max time.Duration // the delay doubles up to this; 30 s

	ResetAfter time.Duration // a component that lived so long starts afresh; 60 s

	// CrashLoopThreshold is how many deaths, none of them after a life of
	// ResetAfter, are a crash loop; 5.
	CrashLoopThreshold int
}

func (p RestartPolicy) withDefaults() RestartPolicy {
	if p.Min <= 0 {
		p.Min = 100 * time.Millisecond
	}
	if p.Max <= 0 {
		p.Max = 30 * time.Second
	}
	p.Max = max(p.Max, p.Min)
	if p.ResetAfter <= 0 {
		p.ResetAfter = time.Minute
	}
	if p.CrashLoopThreshold <= 0 {
		p.CrashLoopThreshold = 5
	}
	return p
}

// delay returns how long to wait after the n-th death in a row, n from 1:
// between half of the exponential delay and all of it, so that components that
// died of one cause do not come back in step.
func (p RestartPolicy) delay(n int) time.Duration {
	return retry.Policy{First: p.Min, Max: p.Max, Jitter: 0.5}.Delay(n)
}

// restartTracker counts a component's deaths since it last lived for long.
type restartTracker struct {
	RestartPolicy
	deaths    int
	crashLoop bool // and reported as such
}

// died records a death and returns the delay before the next start, and whether
// this death is the one that begins a crash loop. A component that refuses its
// configuration is in one at once: nothing will change until a person acts.
func (t *restartTracker) died(lived time.Duration, refused bool) (delay time.Duration, report bool) {
	if lived >= t.ResetAfter {
		t.reset()
	}
	t.deaths++
	loop := refused || t.deaths >= t.CrashLoopThreshold
	report = loop && !t.crashLoop
	t.crashLoop = t.crashLoop || loop
	pace := t.RestartPolicy
	if refused {
		pace.Min = pace.Max
	}
	return pace.delay(t.deaths), report
}

// reset forgets the deaths and reports whether they had been a crash loop.
func (t *restartTracker) reset() bool {
	was := t.crashLoop
	t.deaths, t.crashLoop = 0, false
	return was
}
