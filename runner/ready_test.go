package runner

import (
	"strings"
	"sync"
	"testing"
)

// A runner that waits for the database says so where its readiness is asked
// for, and takes it back.
func TestReadinessFollowsTheDatabase(t *testing.T) {
	b := newFixture(t, "waits", "")
	var mu sync.Mutex
	var said []string
	b.opts.Ready = func(reason string) {
		mu.Lock()
		defer mu.Unlock()
		said = append(said, reason)
	}
	last := func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(said) == 0 {
			return ""
		}
		return said[len(said)-1]
	}
	_, name := b.ready()
	b.start()
	b.awaitNote("waiting")
	b.proxy.Refuse(true)
	b.letGo()
	b.eventually("it says why nothing gets on", func() bool { return last() != "" })
	if reason := last(); !strings.Contains(reason, "connect") {
		t.Errorf("the reason is %q", reason)
	}
	b.proxy.Refuse(false)
	b.outcome(name)
	b.eventually("it is ready again", func() bool { return last() == "" })
}
