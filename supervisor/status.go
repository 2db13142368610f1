package supervisor

import (
	"slices"
	"strings"
	"sync"
	"time"
)

// State is where a component's process stands.
type State string

// The states of a component.
const (
	StateWaiting    State = "waiting"    // not started yet
	StateRunning    State = "running"    // its process lives
	StateRestarting State = "restarting" // it died; the next start is due
	StateStopping   State = "stopping"   // asked to stop
	StateStopped    State = "stopped"    // stopped for good
)

// Status is what the supervisor knows of a component.
type Status struct {
	Name      string    `json:"name"`
	State     State     `json:"state"`
	Since     time.Time `json:"since"` // of State
	PID       int       `json:"pid,omitempty"`
	Ready     bool      `json:"ready"`
	Reason    string    `json:"reason,omitempty"` // why not ready
	Restarts  int       `json:"restarts"`
	CrashLoop bool      `json:"crash_loop"`
	Hanging   bool      `json:"hanging,omitempty"` // it gives no sign of life, and has not died of being killed yet
}

func (s Status) String() string {
	if s.Ready {
		return s.Name + ": ready"
	}
	return s.Name + ": not ready: " + s.Reason
}

// statusTable holds the status of every component.
type statusTable struct {
	mu       sync.Mutex
	list     []Status
	stopping bool
	changed  chan struct{} // holds a value when something changed since it was taken
}

func newStatusTable(components []Component) *statusTable {
	t := &statusTable{changed: make(chan struct{}, 1)}
	for _, c := range components {
		t.list = append(t.list, Status{Name: c.Name, State: StateWaiting, Since: time.Now(), Reason: "not started yet"})
	}
	return t
}

// update changes the i-th component's status.
func (t *statusTable) update(i int, f func(*Status)) {
	t.mu.Lock()
	was := t.list[i].State
	f(&t.list[i])
	if t.list[i].State != was {
		t.list[i].Since = time.Now()
	}
	t.mu.Unlock()
	t.wake()
}

func (t *statusTable) stop() {
	t.mu.Lock()
	t.stopping = true
	t.mu.Unlock()
	t.wake()
}

func (t *statusTable) wake() {
	select {
	case t.changed <- struct{}{}:
	default:
	}
}

// statusSnapshot is the table at one moment.
type statusSnapshot struct {
	list     []Status
	stopping bool
}

func (t *statusTable) snapshot() statusSnapshot {
	t.mu.Lock()
	defer t.mu.Unlock()
	return statusSnapshot{slices.Clone(t.list), t.stopping}
}

// healthy reports whether no component is in a crash loop, and none hangs.
func (s statusSnapshot) healthy() bool {
	return !slices.ContainsFunc(s.list, func(c Status) bool { return c.CrashLoop || c.Hanging })
}

// alive reports whether every component that runs gives its signs of life.
func (s statusSnapshot) alive() bool {
	return !slices.ContainsFunc(s.list, func(c Status) bool { return c.Hanging })
}

// ready reports whether all components are ready and none is to stop.
func (s statusSnapshot) ready() bool {
	return !s.stopping && !slices.ContainsFunc(s.list, func(c Status) bool { return !c.Ready })
}

// String is one line for the service manager.
func (s statusSnapshot) String() string {
	parts := make([]string, len(s.list))
	for i, c := range s.list {
		parts[i] = c.String()
	}
	return strings.Join(parts, "; ")
}
