package taskdb

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Attempt is one claim of a task, as the agent's own schema keeps it.
type Attempt struct {
	TaskID task.ID
	Token  task.Token
	Owner  string // host and process, for people
	Ended  bool   // sets the end to the database's time
	Note   string // why it was made, or how it ended
}

// RecordAttempt adds an attempt, or updates the one with the same task and
// token. Without the agent's schema it does nothing.
func (db *DB) RecordAttempt(ctx context.Context, a Attempt) error {
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return wrap("record the attempt", err)
	}
	_, err := db.exec(ctx, `
		insert into wrktalk_agent.attempt as a (task, token, owner, note, ended)
		values ($1, $2, $3, nullif($4::text, ''), case when $5::boolean then clock_timestamp() end)
		on conflict (task, token) do update set
			owner = coalesce(nullif(excluded.owner, ''), a.owner),
			note = coalesce(excluded.note, a.note), ended = coalesce(excluded.ended, a.ended)`,
		string(a.TaskID), string(a.Token), task.SafeText(a.Owner, 200), task.SafeText(a.Note, task.MaxMessage), a.Ended)
	return wrap("record the attempt", err)
}

// AppendEvents adds events to a task's timeline; an event that is there
// already is left out, so repeating a call does no harm. Without the agent's
// schema it does nothing.
func (db *DB) AppendEvents(ctx context.Context, id task.ID, token task.Token, events []task.Event) error {
	if len(events) == 0 {
		return nil
	}
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return wrap("record events", err)
	}
	var at, component, phase, text []string
	for _, e := range events {
		at = append(at, e.Time.UTC().Format(time.RFC3339Nano))
		component = append(component, task.SafeText(e.Component, 100))
		phase = append(phase, task.SafeText(string(e.Phase), 100))
		text = append(text, task.SafeText(e.Text, task.MaxMessage))
	}
	_, err := db.exec(ctx, `
		insert into wrktalk_agent.event (task, token, at, component, phase, text)
		select $1, $2, e.at::timestamptz, e.component, e.phase, e.text
		from unnest($3::text[], $4::text[], $5::text[], $6::text[]) with ordinality as e (at, component, phase, text, n)
		order by e.n
		on conflict do nothing`, string(id), string(token), at, component, phase, text)
	return wrap("record events", err)
}

// RecordedEvent is an event with its place in the timeline.
type RecordedEvent struct {
	Seq int64
	task.Event
}

// Events returns a task's timeline after the event numbered after, oldest
// first; 0 is from the start. Without the agent's schema it is empty.
func (db *DB) Events(ctx context.Context, id task.ID, after int64) ([]RecordedEvent, error) {
	const doing = "read events"
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return nil, wrap(doing, err)
	}
	events, err := list(ctx, db, func(row pgx.CollectableRow) (e RecordedEvent, err error) {
		err = row.Scan(&e.Seq, &e.Time, &e.Component, &e.Phase, &e.Text)
		return e, err
	}, `
		select seq, at, component, phase, text from wrktalk_agent.event
		where task = $1 and seq > $2::bigint order by seq limit 1000`, string(id), after)
	return events, wrap(doing, err)
}

// LastEvent returns the newest event of a task's timeline; nil without any, and
// without the agent's schema.
func (db *DB) LastEvent(ctx context.Context, id task.ID) (*RecordedEvent, error) {
	const doing = "read the last event"
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return nil, wrap(doing, err)
	}
	e := new(RecordedEvent)
	err := wrap(doing, db.row(ctx, []any{&e.Seq, &e.Time, &e.Component, &e.Phase, &e.Text}, `
		select seq, at, component, phase, text from wrktalk_agent.event
		where task = $1 order by seq desc limit 1`, string(id)))
	if isNotFound(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return e, nil
}

// Delivery is one message to one recipient in the outbox of the agent's schema.
type Delivery struct {
	TaskID    task.ID
	Recipient string
	MessageID string
	State     string // queued, sent, failed: the notifier's words
	Attempts  int
}

// RecordDelivery adds a message to the outbox or updates the one with the same id
// and recipient; one that is as it was keeps its time. Without the agent's
// schema it does nothing.
func (db *DB) RecordDelivery(ctx context.Context, d Delivery) error {
	if ok, err := db.migrated(ctx); err != nil || !ok {
		return wrap("record the delivery", err)
	}
	_, err := db.exec(ctx, `
		insert into wrktalk_agent.outbox as o (task, recipient, message_id, state, attempts)
		values ($1, $2, $3, $4, $5::int)
		on conflict (message_id, recipient) do update set
			state = excluded.state, attempts = excluded.attempts, at = clock_timestamp()
		where (o.state, o.attempts) is distinct from (excluded.state, excluded.attempts)`,
		string(d.TaskID), task.SafeText(d.Recipient, 500), task.SafeText(d.MessageID, 500), task.SafeText(d.State, 100), d.Attempts)
	return wrap("record the delivery", err)
}
