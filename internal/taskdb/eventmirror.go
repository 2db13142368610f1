package taskdb

import (
	"context"
	"log/slog"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// EventMirror copies the timelines of tasks into the agent's own schema. The copy
// is for people; the one in the staging directory is the original. A nil
// EventMirror forgets what it is given.
type EventMirror struct{ *mirror }

// NewEventMirror starts copying. The caller closes it, before the database.
func (db *DB) NewEventMirror(log *slog.Logger) *EventMirror {
	return &EventMirror{newMirror(db, log, "the timeline in the database")}
}

// For returns what takes the events of one claim.
func (m *EventMirror) For(id task.ID, token task.Token) func(task.Event) {
	return func(e task.Event) {
		if m == nil {
			return
		}
		m.add(&write{do: func(ctx context.Context) error {
			ctx, cancel := context.WithTimeout(ctx, mirrorTimeout)
			defer cancel()
			return m.db.AppendEvents(ctx, id, token, []task.Event{e})
		}})
	}
}

// Close writes what still waits, for at most limit, and ends.
func (m *EventMirror) Close(limit time.Duration) {
	if m != nil {
		m.mirror.Close(limit)
	}
}
