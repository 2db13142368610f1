package taskdb

import (
	"context"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/retry"
)

// confirmAttempts is how often a transaction of unknown end is looked up
// before the caller hears that it is unknown.
const confirmAttempts = 6

// backoff has jitter, so that agents which lost the same server do not come back
// all at once.
var backoff = retry.Policy{First: 200 * time.Millisecond, Max: 10 * time.Second, Jitter: 0.5}

// retryTransient calls f until it succeeds, fails for good, was called attempts
// times, or ctx ends.
func retryTransient(ctx context.Context, attempts int, f func() error) error {
	policy := backoff
	policy.Tries = attempts
	return policy.Do(ctx, func() error {
		err := f()
		if err != nil && !Transient(err) && !lostConnection(err) {
			return retry.Permanent(err)
		}
		return err
	}, nil)
}
