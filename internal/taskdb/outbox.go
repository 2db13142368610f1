package taskdb

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"
)

const (
	outboxLimit = 1000 // mails that wait for the database at most
	// pruneEvery is the least time between two prunings by one process,
	// pruneBatch how many rows one statement removes.
	pruneEvery = 24 * time.Hour
	pruneBatch = 10_000
)

// Outbox copies what becomes of mails into the agent's own schema, and removes
// what got old there, beside the work: no call waits for the database, and
// nothing that goes wrong here reaches the caller. Without the schema it does
// nothing. The original is the notifier's ledger.
//
// It is safe for concurrent use.
type Outbox struct {
	db     *DB
	log    *slog.Logger
	keep   time.Duration
	ctx    context.Context // of the calls; ended by cancel
	cancel context.CancelFunc
	wake   chan struct{} // holds one hint that something is to be done
	quit   chan struct{} // closed by Close
	done   chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	waiting []Mail
	prune   bool
	pruned  time.Time // when it was last tried
}

// NewOutbox starts copying; rows older than keep are pruned. The caller closes
// it, before the database.
func (db *DB) NewOutbox(log *slog.Logger, keep time.Duration) *Outbox {
	ctx, cancel := context.WithCancel(context.Background())
	o := &Outbox{
		db: db, log: log, keep: keep, ctx: ctx, cancel: cancel,
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
	}
	go o.serve()
	return o
}

// Record has a mail's state written down. Of several states of one mail that
// wait, the last counts; when too many mails wait, the oldest are given up.
func (o *Outbox) Record(m Mail) {
	o.mu.Lock()
	o.waiting = append(slices.DeleteFunc(o.waiting, func(w Mail) bool {
		return w.MessageID == m.MessageID && w.Recipient == m.Recipient
	}), m)
	if excess := len(o.waiting) - outboxLimit; excess > 0 {
		o.waiting = slices.Delete(o.waiting, 0, excess)
	}
	o.mu.Unlock()
	o.hint()
}

// Prune has old rows removed, at most once a day.
func (o *Outbox) Prune() {
	o.mu.Lock()
	due := o.pruned.IsZero() || time.Since(o.pruned) >= pruneEvery
	if due {
		o.prune, o.pruned = true, time.Now()
	}
	o.mu.Unlock()
	if due {
		o.hint()
	}
}

func (o *Outbox) hint() {
	select {
	case o.wake <- struct{}{}:
	default:
	}
}

// Close writes what still waits, for at most limit, and ends.
func (o *Outbox) Close(limit time.Duration) {
	timer := time.AfterFunc(limit, o.cancel)
	close(o.quit)
	<-o.done
	timer.Stop()
	o.cancel()
}

// serve does what is to be done as it comes up, and what is left of it when
// quit is closed.
func (o *Outbox) serve() {
	defer close(o.done)
	for n := 0; ; {
		var again <-chan time.Time
		if o.work() != nil {
			again = time.After(min(time.Second<<min(n, 5), 15*time.Second))
			n++
		} else {
			n = 0
		}
		select {
		case <-again:
		case <-o.wake:
		case <-o.quit:
			_ = o.work() // the last try; the original is on disk
			return
		}
	}
}

// work writes every mail that waits, then prunes. An error is worth another
// try; what the database refuses for good is dropped.
func (o *Outbox) work() error {
	for {
		o.mu.Lock()
		var m Mail
		mails, prune := len(o.waiting) > 0, o.prune
		if mails {
			m = o.waiting[0]
		}
		o.mu.Unlock()
		var err error
		switch {
		case mails:
			err = o.record(m)
		case prune:
			err = o.removeOld()
		default:
			return nil
		}
		if err != nil && (Transient(err) || o.ctx.Err() != nil) {
			return err
		}
		if err != nil {
			o.log.Warn("the outbox in the database is not up to date", "error", err)
		}
		o.mu.Lock()
		if mails {
			// A newer state of it may have come meanwhile, at the end.
			o.waiting = slices.DeleteFunc(o.waiting, func(w Mail) bool { return w == m })
		} else {
			o.prune = false
		}
		o.mu.Unlock()
	}
}

func (o *Outbox) record(m Mail) error {
	ctx, cancel := context.WithTimeout(o.ctx, timelineTimeout)
	defer cancel()
	return o.db.RecordMail(ctx, m)
}

func (o *Outbox) removeOld() error {
	n, err := o.db.Prune(o.ctx, o.keep)
	if err == nil && n > 0 {
		o.log.Info("removed old rows of the agent's schema", "rows", n, "older_than", o.keep.String())
	}
	return err
}

// Prune removes what the agent's own schema keeps about claims, events, mails
// and cancellations that are older than keep, by the database's clock, and
// returns how many rows that were. Without the schema it does nothing.
func (db *DB) Prune(ctx context.Context, keep time.Duration) (int64, error) {
	const doing = "prune the agent's schema"
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return 0, tidy(doing, err)
	}
	var total int64
	for _, table := range []struct{ name, at string }{
		{"event", "at"}, {"outbox", "at"}, {"cancellation", "at"}, {"attempt", "coalesce(ended, started)"},
	} {
		// In pieces: none holds locks for long, or exceeds the time of one call.
		for {
			n, err := db.exec(ctx, fmt.Sprintf(`delete from wrktalk_agent.%[1]s where ctid = any(array(
				select ctid from wrktalk_agent.%[1]s where %[2]s < clock_timestamp() - make_interval(secs => $1::float8)
				limit $2::int))`, table.name, table.at), keep.Seconds(), pruneBatch)
			total += n
			if err != nil {
				return total, tidy(doing, err)
			}
			if n < pruneBatch {
				break
			}
		}
	}
	return total, nil
}
