package controlpipe

import (
	"fmt"
	"time"
)

// Alive says that the component gets on, and promises that it will say so again
// within that time: after it, the supervisor takes the component to hang, kills it and
// starts it anew. Before the first promise nothing is expected. Of promises in quick
// succession only one a minute is delivered, or four in the promised time where that is
// shorter. Unsupervised, the promise is given to the service manager, if it watches
// this process.
func (c *Conn) Alive(within time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if within <= 0 || time.Until(c.due) > within-min(within/4, time.Minute) {
		return
	}
	if c.promise(within) == nil {
		c.due = time.Now().Add(within)
	}
}

// promise delivers a promise. The caller holds c.mu.
func (c *Conn) promise(within time.Duration) error {
	if c.Supervised() {
		return c.write(promiseLine{within}, sampleTimeout)
	}
	if WatchdogInterval() == 0 {
		return nil
	}
	return Notify(NotifySocket(), fmt.Sprintf("WATCHDOG_USEC=%d\nWATCHDOG=1", within.Microseconds()))
}
