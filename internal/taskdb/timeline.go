package taskdb

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const (
	// timelineLimit is how many events wait for the database at most; when it
	// stays away longer than that, the oldest are given up.
	timelineLimit = 1000
	timelineBatch = 100 // events written at a time
	// timelineTimeout bounds one write.
	timelineTimeout = 5 * time.Second
	// unmigratedFor is how long the answer holds that the agent's schema is not
	// there, so that a database without it is not asked for every event.
	unmigratedFor = time.Minute
)

// Timeline copies the timelines of tasks into the agent's own schema, beside
// the work: adding an event never waits for the database, and nothing that
// goes wrong here reaches the caller. Without the schema it does nothing. The
// copy is for people; the one in the staging directory is the original.
//
// It is safe for concurrent use. A nil Timeline forgets what it is given.
type Timeline struct {
	db     *DB
	log    *slog.Logger
	ctx    context.Context // of the writes; ended by cancel
	cancel context.CancelFunc
	wake   chan struct{} // holds one hint that something waits
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	waiting []timelineEvent
	given   bool // events were given up, and that was said

	absent time.Time // until then the schema is taken to be missing; of serve alone
}

type timelineEvent struct {
	id    task.ID
	token task.Token
	event task.Event
}

// NewTimeline starts copying. The caller closes it, before the database.
func (db *DB) NewTimeline(log *slog.Logger) *Timeline {
	ctx, cancel := context.WithCancel(context.Background())
	l := &Timeline{
		db: db, log: log, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go l.serve()
	return l
}

// For returns what takes the events of one claim.
func (l *Timeline) For(id task.ID, token task.Token) func(task.Event) {
	return func(e task.Event) {
		if l != nil {
			l.add(timelineEvent{id, token, e})
		}
	}
}

func (l *Timeline) add(e timelineEvent) {
	l.mu.Lock()
	l.waiting = append(l.waiting, e)
	excess := len(l.waiting) - timelineLimit
	if excess > 0 {
		l.waiting = slices.Delete(l.waiting, 0, excess)
	}
	say := excess > 0 && !l.given
	l.given = l.given || say
	l.mu.Unlock()
	if say {
		l.log.Warn("the timeline in the database will miss events: the database does not take them")
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Close writes what still waits, for at most limit, and ends.
func (l *Timeline) Close(limit time.Duration) {
	if l == nil {
		return
	}
	timer := time.AfterFunc(limit, l.cancel)
	close(l.quit)
	<-l.done
	timer.Stop()
	l.cancel()
}

// serve writes events as they come, and those that wait when quit is closed.
func (l *Timeline) serve() {
	defer close(l.done)
	for {
		select {
		case <-l.wake:
		case <-l.quit:
			l.lastFlush()
			return
		}
		for n := 0; l.flush() != nil; n++ {
			timer := time.NewTimer(min(time.Second<<min(n, 5), 15*time.Second))
			select {
			case <-timer.C:
			case <-l.quit:
			}
			timer.Stop()
			select {
			case <-l.quit:
				l.lastFlush()
				return
			default:
			}
		}
	}
}

// lastFlush writes what still waits. Connections of old may be dead without
// knowing it; each try uses one of them up. What is lost is on disk.
func (l *Timeline) lastFlush() {
	for range confirmAttempts {
		if l.flush() == nil || l.ctx.Err() != nil {
			return
		}
	}
}

// flush writes everything that waits. An error is worth another try; what the
// database refuses for good is dropped.
func (l *Timeline) flush() error {
	for {
		batch := l.batch()
		if len(batch) == 0 {
			return nil
		}
		err := l.write(batch)
		switch {
		case err == nil:
		case Transient(err), l.ctx.Err() != nil:
			return err
		default:
			l.log.Warn("the timeline in the database misses events", "task", batch[0].id, "error", err)
		}
		l.drop(batch)
	}
}

// batch returns the next events of one claim.
func (l *Timeline) batch() []timelineEvent {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for n < min(len(l.waiting), timelineBatch) && l.waiting[n].id == l.waiting[0].id && l.waiting[n].token == l.waiting[0].token {
		n++
	}
	return slices.Clone(l.waiting[:n])
}

// drop forgets a batch that was dealt with. Its head may have been given up
// meanwhile.
func (l *Timeline) drop(batch []timelineEvent) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range batch {
		if len(l.waiting) > 0 && l.waiting[0] == e {
			l.waiting = slices.Delete(l.waiting, 0, 1)
		}
	}
}

func (l *Timeline) write(batch []timelineEvent) error {
	if time.Now().Before(l.absent) {
		return nil
	}
	ctx, cancel := context.WithTimeout(l.ctx, timelineTimeout)
	defer cancel()
	if ok, err := l.db.migrated(ctx); err != nil || !ok {
		if err == nil {
			l.absent = time.Now().Add(unmigratedFor)
		}
		return err
	}
	events := make([]task.Event, len(batch))
	for i, e := range batch {
		events[i] = e.event
	}
	return l.db.AppendEvents(ctx, batch[0].id, batch[0].token, events)
}
