package taskdb

import (
	"context"
	"fmt"
	"log/slog"
	"time"
)

const (
	// pruneEvery is the least time between two prunings by one process,
	// pruneBatch how many rows one statement removes.
	pruneEvery = 24 * time.Hour
	pruneBatch = 10_000
)

// DeliveryMirror copies what becomes of messages into the agent's own schema, and
// removes what got old there. The original is deliveries.json, which the notifier
// keeps.
type DeliveryMirror struct {
	*mirror
	keep   time.Duration
	pruned time.Time // when that was last asked for; guarded by mu
}

// NewDeliveryMirror starts copying; rows older than keep are pruned. The caller
// closes it, before the database.
func (db *DB) NewDeliveryMirror(log *slog.Logger, keep time.Duration) *DeliveryMirror {
	return &DeliveryMirror{mirror: newMirror(db, log, "the outbox in the database"), keep: keep}
}

// Record has a delivery's state written. Of several states of one delivery that
// wait, only the last is written.
func (m *DeliveryMirror) Record(d Delivery) {
	type key struct{ messageID, recipient string }
	m.add(&write{key: key{d.MessageID, d.Recipient}, do: func(ctx context.Context) error {
		ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
		defer cancel()
		return m.db.RecordDelivery(ctx, d)
	}})
}

// Prune has old rows removed, at most once a day.
func (m *DeliveryMirror) Prune() {
	m.mu.Lock()
	due := m.pruned.IsZero() || time.Since(m.pruned) >= pruneEvery
	if due {
		m.pruned = time.Now()
	}
	m.mu.Unlock()
	if due {
		m.add(&write{do: m.removeOld})
	}
}

func (m *DeliveryMirror) removeOld(ctx context.Context) error {
	n, err := m.db.Prune(ctx, m.keep)
	if err == nil && n > 0 {
		m.log.Info("removed old rows of the agent's schema", "rows", n, "older_than", m.keep.String())
	}
	return err
}

// Prune removes what the agent's own schema keeps about claims, events,
// deliveries and cancellations that are older than keep, by the database's clock,
// and returns how many rows that were. Without the schema it does nothing.
func (db *DB) Prune(ctx context.Context, keep time.Duration) (int64, error) {
	const doing = "prune the agent's schema"
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return 0, wrap(doing, err)
	}
	var total int64
	for _, table := range []struct{ name, at string }{
		{"event", "at"}, {"outbox", "at"}, {"cancellation", "at"}, {"attempt", "coalesce(ended, started)"},
	} {
		// In pieces, so that none holds locks for long or exceeds opTimeout.
		for {
			n, err := db.exec(ctx, fmt.Sprintf(`delete from wrktalk_agent.%[1]s where ctid = any(array(
				select ctid from wrktalk_agent.%[1]s where %[2]s < clock_timestamp() - make_interval(secs => $1::float8)
				limit $2::int))`, table.name, table.at), keep.Seconds(), pruneBatch)
			total += n
			if err != nil {
				return total, wrap(doing, err)
			}
			if n < pruneBatch {
				break
			}
		}
	}
	return total, nil
}
