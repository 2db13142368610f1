package taskdb

import (
	"context"
	"math/rand/v2"
	"time"
)

// confirmAttempts is how often a transaction of unknown end is looked up
// before the caller hears that it is unknown.
const confirmAttempts = 6

// backoff waits before the n-th repetition, n counted from 0: from a fifth of
// a second to ten seconds, with jitter, so that agents which lost the same
// server do not come back all at once. It returns early with the context's
// error when ctx ends.
func backoff(ctx context.Context, n int) error {
	const first, longest = 200 * time.Millisecond, 10 * time.Second
	d := min(first<<min(n, 10), longest)
	d = d/2 + rand.N(d/2)
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// retry calls f until it succeeds, fails for good, or was called attempts
// times; 0 attempts is until ctx ends.
func retry(ctx context.Context, attempts int, f func() error) error {
	for n := 0; ; n++ {
		err := f()
		if err == nil || !Transient(err) && !lostConnection(err) || n+1 == attempts {
			return err
		}
		if backoff(ctx, n) != nil {
			return err
		}
	}
}
