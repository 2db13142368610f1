package taskdb

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/retry"
)

const (
	mirrorLimit   = 1000 // writes that wait for the database at most
	mirrorTimeout = 5 * time.Second
)

// mirrorRetry is how writes are tried again that the database does not take now.
var mirrorRetry = retry.Policy{First: time.Second, Max: 15 * time.Second}

// mirror makes writes to the agent's own schema one after the other, beside the
// work: no caller waits for the database, and nothing that goes wrong here
// reaches one. What it writes are copies for people; the originals are on disk.
//
// It is safe for concurrent use.
type mirror struct {
	db     *DB
	log    *slog.Logger
	what   string          // what is out of date when a write fails, for the log
	writes context.Context // of the writes; ended by cancel
	cancel context.CancelFunc
	wake   chan struct{} // holds one hint that something waits
	worker *background.Worker

	mu      sync.Mutex
	waiting []*write
	full    bool // writes were given up, and that was said
}

// write is one write that waits.
type write struct {
	key any // the write takes the place of one with the same key that waits; nil takes no place
	do  func(context.Context) error
}

func newMirror(db *DB, log *slog.Logger, what string) *mirror {
	m := &mirror{db: db, log: log, what: what, wake: make(chan struct{}, 1)}
	m.writes, m.cancel = context.WithCancel(context.Background())
	m.worker = background.Start(m.writes, m.serve)
	return m
}

// add has a write made. When too many wait, the oldest are given up.
func (m *mirror) add(w *write) {
	m.mu.Lock()
	if w.key != nil {
		m.waiting = slices.DeleteFunc(m.waiting, func(old *write) bool { return old.key == w.key })
	}
	m.waiting = append(m.waiting, w)
	excess := len(m.waiting) - mirrorLimit
	if excess > 0 {
		m.waiting = slices.Delete(m.waiting, 0, excess)
	}
	say := excess > 0 && !m.full
	m.full = m.full || say
	m.mu.Unlock()
	if say {
		m.log.Warn(m.what + " will miss events: the database does not take them")
	}
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// Close makes the writes that still wait, for at most limit, and ends.
func (m *mirror) Close(limit time.Duration) {
	timer := time.AfterFunc(limit, m.cancel)
	defer timer.Stop()
	m.worker.Stop()
	m.cancel()
}

// serve makes writes as they come, and those that still wait when open ends.
func (m *mirror) serve(open context.Context) {
	for open.Err() == nil {
		select {
		case <-m.wake:
			_ = mirrorRetry.Do(open, m.flush, nil) // what is not written yet still waits
		case <-open.Done():
		}
	}
	// Idle connections of the pool may be dead without knowing it; each try uses
	// one of them up.
	for range confirmAttempts {
		if m.flush() == nil || m.writes.Err() != nil {
			return
		}
	}
}

// flush makes every write that waits. An error is worth another try; what the
// database refuses for good is dropped.
func (m *mirror) flush() error {
	for {
		m.mu.Lock()
		if len(m.waiting) == 0 {
			m.mu.Unlock()
			return nil
		}
		next := m.waiting[0]
		m.mu.Unlock()
		err := next.do(m.writes)
		if err != nil && (Transient(err) || m.writes.Err() != nil) {
			return err
		}
		if err != nil {
			m.log.Warn(m.what+" is not up to date", "error", err)
		}
		m.mu.Lock()
		if i := slices.Index(m.waiting, next); i >= 0 { // else it was given up or replaced meanwhile
			m.waiting = slices.Delete(m.waiting, i, i+1)
		}
		m.mu.Unlock()
	}
}
