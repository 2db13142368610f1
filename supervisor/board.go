package supervisor

import (
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
}

func (s Status) String() string {
	if s.Ready {
		return s.Name + ": ready"
	}
	return s.Name + ": not ready: " + s.Reason
}

// board holds the components' statuses.
type board struct {
	mu       sync.Mutex
	list     []Status
	stopping bool
	changed  chan struct{} // holds a value when something changed since it was taken
}

func newBoard(components []Component) *board {
	b := &board{changed: make(chan struct{}, 1)}
	for _, c := range components {
		b.list = append(b.list, Status{Name: c.Name, State: StateWaiting, Since: time.Now(), Reason: "not started yet"})
	}
	return b
}

// update changes the i-th component's status.
func (b *board) update(i int, f func(*Status)) {
	b.mu.Lock()
	was := b.list[i].State
	f(&b.list[i])
	if b.list[i].State != was {
		b.list[i].Since = time.Now()
	}
	b.mu.Unlock()
	b.wake()
}

func (b *board) stop() {
	b.mu.Lock()
	b.stopping = true
	b.mu.Unlock()
	b.wake()
}

func (b *board) wake() {
	select {
	case b.changed <- struct{}{}:
	default:
	}
}

// view is the board at one moment.
type view struct {
	list     []Status
	stopping bool
}

func (b *board) view() view {
	b.mu.Lock()
	defer b.mu.Unlock()
	return view{append([]Status(nil), b.list...), b.stopping}
}

// healthy reports whether no component is in a crash loop.
func (v view) healthy() bool {
	for _, s := range v.list {
		if s.CrashLoop {
			return false
		}
	}
	return true
}

// ready reports whether all components are ready and none is to stop.
func (v view) ready() bool {
	for _, s := range v.list {
		if !s.Ready {
			return false
		}
	}
	return !v.stopping
}

// String is one line for the service manager.
func (v view) String() string {
	parts := make([]string, len(v.list))
	for i, s := range v.list {
		parts[i] = s.String()
	}
	return strings.Join(parts, "; ")
}
