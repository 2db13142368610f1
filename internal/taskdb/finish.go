package taskdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Heartbeat extends a claim's lease. ErrFenced means that it is not ours any
// more.
func (db *DB) Heartbeat(ctx context.Context, id task.ID, token task.Token) error {
	doing := fmt.Sprintf("send the heartbeat of task %s", id)
	n, err := db.exec(ctx, `update agent_task set last_heartbeat = clock_timestamp()
		where id = $1 and status::text = 'inProgress' and picked_up_at::text = $2::text`, string(id), string(token))
	if err := noSuchID(err); err != nil && !isNotFound(err) {
		return wrap(doing, err)
	}
	if n == 0 {
		return wrap(doing, ErrFenced)
	}
	return nil
}

// Finish records an outcome: the task's status, result and error, and on
// success which artifact serves now, in one transaction.
//
// The row of an outcome that is Offline is added first.
//
// It may be repeated: a task that already ended with this outcome under the
// same token is left as it is, and that is no error. A commit without a reply
// is resolved that way before Finish returns. ErrFenced means that somebody
// else took the task over or ended it, and that nothing was changed; any other
// error that Transient accepts is worth another try.
func (db *DB) Finish(ctx context.Context, o task.Outcome) error {
	return db.finish(ctx, o, true)
}

// FinishWithoutFlags is Finish for an outcome whose release RecordServing has
// flagged already: later ones may have moved the flags since.
func (db *DB) FinishWithoutFlags(ctx context.Context, o task.Outcome) error {
	return db.finish(ctx, o, false)
}

func (db *DB) finish(ctx context.Context, o task.Outcome, flags bool) error {
	doing := fmt.Sprintf("record the outcome of task %s", o.TaskID)
	err := retryTransient(ctx, confirmAttempts, func() (err error) {
		var first error
		for _, o := range shorterOutcomes(o) {
			err = db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error { return finish(ctx, tx, o, flags) })
			if !refusesContent(err) {
				break
			}
			if first == nil {
				first = err
			}
		}
		if refusesContent(err) {
			return first
		}
		return err
	})
	return wrap(doing, noSuchTask(err))
}

// RecordServing records which release an outcome brought up, and nothing else: for
// an outcome that Finish is refused, so that what later tasks are based on is true.
// It may be repeated until the next task of the target begins. ErrFenced means that
// somebody else took the task over or ended it.
func (db *DB) RecordServing(ctx context.Context, o task.Outcome) error {
	return wrap(fmt.Sprintf("record what task %s brought up", o.TaskID), noSuchTask(retryTransient(ctx, confirmAttempts, func() error {
		return db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
			if !o.Offline {
				var ours bool
				err := tx.QueryRow(ctx, `select status::text = 'inProgress' and picked_up_at::text = $2::text from agent_task where id = $1`,
					string(o.TaskID), string(o.Token)).Scan(&ours)
				if err == nil && !ours {
					err = ErrFenced
				}
				if err != nil {
					return err
				}
			}
			return moveFlags(ctx, tx, o.ArtifactID)
		})
	})))
}

// Refused reports whether the server refused what a call wrote, by a constraint, a
// trigger or a type, and will do so again: it is there, and the claim holds.
func Refused(err error) bool {
	var pg *pgconn.PgError
	return errors.As(err, &pg) && pg.SeverityUnlocalized != "FATAL" && !Transient(err) &&
		!errors.Is(err, ErrFenced) && !errors.Is(err, ErrNotFound)
}

// refusesContent reports whether less content may pass: a column is narrower than
// the reference's, the database's encoding lacks a character, a constraint or a
// trigger of the backend minds.
func refusesContent(err error) bool {
	var pg *pgconn.PgError
	if !Refused(err) || !errors.As(err, &pg) {
		return false
	}
	switch pg.Code[:2] {
	case "22", "23", "P0":
		return true
	}
	return false
}

// shorterOutcomes returns o and what is left of it by and by: losing an accent, or
// all words, is better than a record that fails for ever. The mail has them.
func shorterOutcomes(o task.Outcome) []task.Outcome {
	return []task.Outcome{o, asciiOutcome(o, 200), asciiOutcome(o, 50), asciiOutcome(o, 0)}
}

// noSuchTask makes a task that is gone a fenced one.
func noSuchTask(err error) error {
	if errors.Is(noSuchID(err), ErrNotFound) || errors.Is(err, pgx.ErrNoRows) {
		return fmt.Errorf("%w: there is no such task", ErrFenced)
	}
	return err
}

func finish(ctx context.Context, tx pgx.Tx, o task.Outcome, flags bool) error {
	if o.Offline {
		if err := insertOfflineTask(ctx, tx, &o); err != nil {
			return err
		}
	}
	var status, token, stored string
	// Of a result that is longer than any of ours a part is enough.
	err := tx.QueryRow(ctx, `select status::text, coalesce(picked_up_at::text, ''), coalesce(left(result::text, 1000000), '') from agent_task
		where id = $1 for update`, string(o.TaskID)).Scan(&status, &token, &stored)
	if err != nil {
		return err
	}
	switch {
	case token != string(o.Token) && !o.Offline: // nobody else can have claimed that one
		return fmt.Errorf("%w: it was claimed at %q", ErrFenced, token)
	case task.Status(status).Final() && recorded(o, status, stored):
		return nil // by an earlier try whose reply was lost
	case task.Status(status).Final():
		return fmt.Errorf("%w: it was ended as %s by somebody else", ErrFenced, status)
	case task.Status(status) != task.StatusInProgress:
		return fmt.Errorf("%w: its status is %q", ErrFenced, status)
	}
	result, err := json.Marshal(o.Result())
	if err != nil {
		return fmt.Errorf("encode the result: %w", err)
	}
	var complaint *string
	if !o.Succeeded {
		complaint = new(task.SafeText(o.Error, task.MaxMessage))
	}
	// The result goes as untyped text: it fits json, jsonb and text. now() is
	// the transaction's time, so that completed_at equals applied_at.
	_, err = tx.Exec(ctx, `update agent_task set status = $2, completed_at = now(), last_heartbeat = now(),
			updated_at = now(), result = $3, error_message = $4
		where id = $1`, string(o.TaskID), string(o.Status()), string(result), complaint)
	if err != nil {
		return err
	}
	if !flags || !MovesFlags(o) {
		return nil
	}
	return moveFlags(ctx, tx, o.ArtifactID)
}

// MovesFlags reports whether an outcome says that another release serves now.
func MovesFlags(o task.Outcome) bool { return o.Succeeded && o.ArtifactID != "" && o.Kind.Known() }

// recorded reports whether a final row is what Finish wrote about o. The token
// does not tell: whoever ends a task while we work on it may leave it as it is.
func recorded(o task.Outcome, status, result string) bool {
	var row struct{ Status, Message, Error string }
	if status != string(o.Status()) || json.Unmarshal([]byte(result), &row) != nil {
		return false
	}
	for _, o := range shorterOutcomes(o) {
		want := o.Result()
		complaint, _ := want["error"].(string)
		if row.Status == want["status"] && row.Message == want["message"] && row.Error == complaint {
			return true
		}
	}
	return false
}

// insertOfflineTask adds the row of a task that was carried out while the database
// was away, unless an earlier try did. An artifact that is gone meanwhile is left
// out of the row and of o; where ids are numbers, the row gets the next one, and o too.
func insertOfflineTask(ctx context.Context, tx pgx.Tx, o *task.Outcome) error {
	var artifact *string
	err := tx.QueryRow(ctx, `select id::text from release_artifact where id::text = $1`, o.ArtifactID).Scan(&artifact)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) {
		return err
	}
	if artifact == nil {
		o.ArtifactID = ""
	}
	column, err := readIDColumn(ctx, tx, "agent_task")
	if err != nil {
		return err
	}
	if column.isNumber() {
		// By the time at which it was asked for: nothing else tells of an earlier try.
		err := tx.QueryRow(ctx, `select id::text from agent_task where type::text = $1::text
			and abs(extract(epoch from created_at - $2::timestamptz)) < 0.001
			and abs(extract(epoch from picked_up_at - $2::timestamptz)) < 0.001`, string(o.Kind), string(o.Token)).Scan(&o.TaskID)
		if err == nil || !errors.Is(err, pgx.ErrNoRows) {
			return err
		}
		id, err := newRowID(ctx, tx, "agent_task")
		if err != nil {
			return err
		}
		o.TaskID = task.ID(id.text)
	}
	_, err = tx.Exec(ctx, `
		insert into agent_task (id, type, status, release_artifact_id, execute_after, picked_up_at, created_at, updated_at)
		overriding system value select $1, $2, 'inProgress', $3, $4::timestamptz, $4::timestamptz, $4::timestamptz, now()
		where not exists (select 1 from agent_task where id::text = $5::text)`,
		string(o.TaskID), string(o.Kind), artifact, string(o.Token), string(o.TaskID))
	return err
}

// asciiOutcome reduces o's texts to ASCII of at most limit bytes.
func asciiOutcome(o task.Outcome, limit int) task.Outcome {
	ascii := func(s string) string {
		s = strings.Map(func(r rune) rune {
			if r < ' ' || r > '~' {
				return '?'
			}
			return r
		}, s)
		return s[:min(limit, len(s))]
	}
	o.Message, o.Error = ascii(o.Message), ascii(o.Error)
	o.ReleaseVersion, o.Serving = ascii(o.ReleaseVersion), ascii(o.Serving)
	return o
}
