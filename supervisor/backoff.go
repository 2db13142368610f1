package supervisor

import (
	"math/rand/v2"
	"time"
)

// Backoff says how dead components are restarted. Zero fields take their
// default.
type Backoff struct {
	Min    time.Duration // delay after the first death; 100 ms
	Max    time.Duration // the delay doubles up to this; 30 s
	Steady time.Duration // a component that lived so long starts afresh; 60 s

	LoopDeaths int // so many deaths without a steady life between them are a crash loop; 5
}

func (b Backoff) withDefaults() Backoff {
	if b.Min <= 0 {
		b.Min = 100 * time.Millisecond
	}
	if b.Max <= 0 {
		b.Max = 30 * time.Second
	}
	b.Max = max(b.Max, b.Min)
	if b.Steady <= 0 {
		b.Steady = time.Minute
	}
	if b.LoopDeaths <= 0 {
		b.LoopDeaths = 5
	}
	return b
}

// delay returns how long to wait after the n-th death in a row, n from 1:
// between half of the exponential delay and all of it, so that components that
// died of one cause do not come back in step.
func (b Backoff) delay(n int) time.Duration {
	d := b.Min
	for ; n > 1 && d < b.Max; n-- {
		d *= 2
	}
	d = min(d, b.Max)
	return d/2 + rand.N(d/2+1)
}

// streak counts a component's deaths since it last was steady.
type streak struct {
	Backoff
	deaths  int  // in the streak
	looping bool // and reported as such
}

// died notes a death and returns the delay before the next start, and whether
// this death is the one that makes the streak a crash loop. A component that
// refuses its configuration is treated as one at once: nothing will change
// until a person acts.
func (s *streak) died(lived time.Duration, refused bool) (delay time.Duration, report bool) {
	if lived >= s.Steady {
		s.steady()
	}
	s.deaths++
	loop := refused || s.deaths >= s.LoopDeaths
	report = loop && !s.looping
	s.looping = s.looping || loop
	if refused {
		return s.Max/2 + rand.N(s.Max/2+1), report
	}
	return s.delay(s.deaths), report
}

// steady ends the streak and reports whether it had been a crash loop.
func (s *streak) steady() bool {
	was := s.looping
	s.deaths, s.looping = 0, false
	return was
}
