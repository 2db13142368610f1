package retry

import (
	"context"
	"errors"
	"testing"
	"time"
)

var errTry = errors.New("try")

func TestDelayDoublesAndIsShortenedAtRandom(t *testing.T) {
	for _, c := range []struct {
		jitter float64
		n      int
		want   time.Duration // the longest
	}{
		{0, 1, time.Second},
		{0, 3, 4 * time.Second},
		{0, 6, 30 * time.Second},
		{0, 1_000_000, 30 * time.Second},
		{0.5, 1, time.Second},
		{0.5, 4, 8 * time.Second},
		{0.5, 9, 30 * time.Second},
		{0.2, 2, 2 * time.Second},
		{1, 2, 2 * time.Second},
	} {
		p := Policy{First: time.Second, Max: 30 * time.Second, Jitter: c.jitter}
		least := time.Duration(float64(c.want)*(1-c.jitter)) - time.Microsecond
		seen := map[time.Duration]bool{}
		for range 100 {
			d := p.Delay(c.n)
			if d < least || d > c.want {
				t.Fatalf("with jitter %v, delay %d is %s, want between %s and %s", c.jitter, c.n, d, least, c.want)
			}
			seen[d] = true
		}
		if random := len(seen) > 1; random != (c.jitter > 0) {
			t.Errorf("with jitter %v, delay %d has %d values", c.jitter, c.n, len(seen))
		}
	}
}

func TestDoTriesUntilItSucceeds(t *testing.T) {
	p := Policy{First: time.Millisecond, Max: 4 * time.Millisecond}
	calls := 0
	var waits []time.Duration
	err := p.Do(t.Context(), func() error {
		if calls++; calls < 5 {
			return errTry
		}
		return nil
	}, func(err error, wait time.Duration) {
		if !errors.Is(err, errTry) {
			t.Errorf("told of %v", err)
		}
		waits = append(waits, wait)
	})
	if err != nil || calls != 5 {
		t.Errorf("%d calls, %v", calls, err)
	}
	want := []time.Duration{time.Millisecond, 2 * time.Millisecond, 4 * time.Millisecond, 4 * time.Millisecond}
	if len(waits) != len(want) {
		t.Fatalf("waits are %v", waits)
	}
	for i, w := range want {
		if waits[i] != w {
			t.Errorf("waits are %v, want %v", waits, want)
		}
	}
}

func TestDoGivesUp(t *testing.T) {
	p := Policy{First: time.Nanosecond, Max: time.Nanosecond}
	for name, c := range map[string]struct {
		tries int
		err   error
		calls int
	}{
		"after so many tries":                        {3, errTry, 3},
		"on what is final":                           {0, Permanent(errTry), 1},
		"on what is final, at the last of its tries": {1, Permanent(errTry), 1},
	} {
		t.Run(name, func(t *testing.T) {
			p.Tries = c.tries
			calls := 0
			err := p.Do(t.Context(), func() error { calls++; return c.err }, nil)
			if err != errTry || calls != c.calls {
				t.Errorf("%d calls, %v", calls, err)
			}
		})
	}
}

// The caller is told what went wrong, not that its own context has ended.
func TestDoEndsWithItsContext(t *testing.T) {
	p := Policy{First: time.Hour, Max: time.Hour}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := p.Do(ctx, func() error { return errTry }, func(error, time.Duration) { cancel() })
	if err != errTry {
		t.Errorf("ended with %v", err)
	}
	calls := 0
	if err := p.Do(ctx, func() error { calls++; return errTry }, nil); err != errTry || calls != 1 {
		t.Errorf("%d calls, %v", calls, err)
	}
	if Sleep(ctx, time.Hour) || Sleep(ctx, 0) || !Sleep(t.Context(), time.Nanosecond) {
		t.Error("a sleep does not tell whether its context has ended")
	}
}
