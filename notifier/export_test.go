package notifier

import (
	"time"
)

// What the tests of the loop, which need a channel, reach into.

const BackoffMax = backoffMax

var (
	Backoff     = backoff
	MessageIDOf = messageID
)

func (n *Notifier) SetNow(now func() time.Time) { n.now = now }

func (n *Notifier) SetBackoff(f func(attempt int, limit time.Duration) time.Duration) { n.backoff = f }
