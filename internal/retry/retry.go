// Package retry repeats what may succeed later, waiting longer after each failure.
package retry

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
)

// Policy says how long to wait between two tries, and how often to try.
type Policy struct {
	First time.Duration // wait after the first failure; doubles with each one that follows
	Max   time.Duration // no wait is longer

	// Jitter is by what part, from 0 to 1, a wait may be shorter, at random: so
	// that those who failed of one cause do not come back in step. With 0.5 a wait
	// is between half of its length and all of it.
	Jitter float64

	Tries int // calls at most; 0 is no limit
}

// Do calls f until it succeeds, fails for good (see Permanent), was called
// p.Tries times, or ctx has ended. It returns the error of the last call, also
// when ctx has ended. Failed, if not nil, is told of each failure that another
// try follows, and how long the wait for that is.
func (p Policy) Do(ctx context.Context, f func() error, failed func(err error, wait time.Duration)) error {
	var last error
	_, _ = backoff.Retry(ctx,
		func() (struct{}, error) {
			err := f()
			last = err
			var permanent *backoff.PermanentError
			if errors.As(err, &permanent) {
				last = permanent.Err
			}
			return struct{}{}, err
		},
		backoff.WithBackOff(p.backOff()),
		backoff.WithMaxTries(uint(max(p.Tries, 0))),
		backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(_ error, wait time.Duration) {
			if failed != nil {
				failed(last, wait)
			}
		}))
	return last
}

// Permanent marks an error of a function that Do is not to call again; Do returns
// err itself.
func Permanent(err error) error { return backoff.Permanent(err) }

// Delay returns how long to wait after the n-th failure in a row, n from 1, for
// those who keep count themselves.
func (p Policy) Delay(n int) time.Duration {
	b := p.backOff()
	b.Reset()
	for range min(n, maxDoublings) - 1 {
		b.NextBackOff()
	}
	return b.NextBackOff()
}

// maxDoublings is more than it takes to get from a nanosecond to any Max.
const maxDoublings = 64

// Sleep waits for d. It returns false, and at once, when ctx has ended.
func Sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return ctx.Err() == nil
	case <-ctx.Done():
		return false
	}
}

// backOff expresses the policy for the library, whose random waits lie around the
// interval, not below it.
func (p Policy) backOff() *limited {
	middle := 1 - p.Jitter/2
	return &limited{p.Max, backoff.ExponentialBackOff{
		InitialInterval:     time.Duration(float64(p.First) * middle),
		MaxInterval:         time.Duration(float64(p.Max) * middle),
		RandomizationFactor: p.Jitter / 2 / middle,
		Multiplier:          2,
	}}
}

// limited keeps what rounding adds below the longest wait.
type limited struct {
	max time.Duration
	backoff.ExponentialBackOff
}

func (l *limited) NextBackOff() time.Duration { return min(l.max, l.ExponentialBackOff.NextBackOff()) }
