package supervisor

import (
	"testing"
	"time"
)

func TestDelayDoublesUpToTheMaximum(t *testing.T) {
	b := RestartPolicy{}.withDefaults()
	for n, want := range map[int]time.Duration{
		1: 100 * time.Millisecond, 2: 200 * time.Millisecond, 5: 1600 * time.Millisecond,
		9: 25600 * time.Millisecond, 10: 30 * time.Second, 1000: 30 * time.Second,
	} {
		seen := map[time.Duration]bool{}
		for range 100 {
			d := b.delay(n)
			if d < want/2 || d > want {
				t.Fatalf("delay after death %d is %s, want between %s and %s", n, d, want/2, want)
			}
			seen[d] = true
		}
		if len(seen) < 2 {
			t.Errorf("delay after death %d is always the same", n)
		}
	}
}

func TestCrashLoop(t *testing.T) {
	type death struct {
		lived   time.Duration
		refused bool
		loop    bool          // is reported as a crash loop
		max     time.Duration // of the delay
	}
	const s = time.Second
	for _, tc := range []struct {
		name   string
		deaths []death
	}{
		{"five in a row, reported once", []death{
			{max: s / 10},
			{max: s / 5},
			{max: 2 * s / 5},
			{max: 4 * s / 5},
			{loop: true, max: 8 * s / 5},
			{max: 16 * s / 5},
			{max: 32 * s / 5},
		}},
		{"lives of almost a minute", []death{
			{lived: 59 * s, max: s / 10},
			{lived: 59 * s, max: s / 5},
			{lived: 59 * s, max: s},
			{lived: 59 * s, max: s},
			{lived: 59 * s, loop: true, max: 2 * s},
			{lived: 59 * s, max: 4 * s},
		}},
		{"a long life starts afresh", []death{
			{max: s / 10},
			{max: s / 5},
			{max: s},
			{max: s},
			{lived: 60 * s, max: s / 10},
			{max: s / 5},
			{max: s},
			{max: s},
			{loop: true, max: 2 * s},
			{lived: 60 * s, max: s / 10},
		}},
		{"refused", []death{
			{refused: true, loop: true, max: 30 * s}, {refused: true, max: 30 * s},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			st := restartTracker{RestartPolicy: RestartPolicy{}.withDefaults()}
			for i, d := range tc.deaths {
				delay, loop := st.died(d.lived, d.refused)
				if loop != d.loop {
					t.Errorf("death %d: crash loop reported %v, want %v", i+1, loop, d.loop)
				}
				if delay > d.max {
					t.Errorf("death %d: delay %s, want at most %s", i+1, delay, d.max)
				}
				if d.refused && delay < 15*s {
					t.Errorf("death %d: delay %s after a refused configuration", i+1, delay)
				}
			}
		})
	}
}
