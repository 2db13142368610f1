package taskdb

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// EndPending fails a task that no agent has picked up, for the reason in o, and
// reports whether it did: false means that it is not pending (any more).
func (db *DB) EndPending(ctx context.Context, o task.Outcome) (bool, error) {
	return db.end(ctx, o, `status::text = 'pending'`)
}

// EndInProgress fails a task in progress over the head of whoever works on it:
// its claim, o.Token, is fenced from then on, so nothing more is recorded about
// it and nobody is mailed. It reports whether it did.
func (db *DB) EndInProgress(ctx context.Context, o task.Outcome) (bool, error) {
	return db.end(ctx, o, `status::text = 'inProgress' and coalesce(picked_up_at::text, '') = $5::text`, string(o.Token))
}

func (db *DB) end(ctx context.Context, o task.Outcome, condition string, args ...any) (bool, error) {
	doing := fmt.Sprintf("end task %s", o.TaskID)
	result, err := json.Marshal(o.Result())
	if err != nil {
		return false, fmt.Errorf("%s: encode the result: %w", doing, err)
	}
	n, err := db.exec(ctx, `update agent_task set status = $2, completed_at = now(), updated_at = now(),
			result = $3, error_message = $4
		where id = $1 and `+condition,
		append([]any{string(o.TaskID), string(task.StatusFailed), string(result), task.SafeText(o.Error, task.MaxMessage)}, args...)...)
	if err = noSuchID(err); isNotFound(err) {
		err = nil
	}
	return n > 0, wrap(doing, err)
}

// RequestCancel records an operator's request to cancel a task in progress
// where its runner asks for it, on whatever host that is. Without the agent's
// schema it returns ErrNotMigrated.
func (db *DB) RequestCancel(ctx context.Context, id task.ID, token task.Token, reason string) error {
	const doing = "ask for a cancellation"
	if s, err := db.AgentSchema(ctx); err != nil {
		return wrap(doing, err)
	} else if s.Version == 0 {
		return wrap(doing, s.err())
	}
	_, err := db.exec(ctx, `insert into wrktalk_agent.cancellation as c (task, token, reason) values ($1, $2, $3)
		on conflict (task, token) do update set reason = coalesce(nullif(excluded.reason, ''), c.reason)`,
		string(id), string(token), task.SafeText(reason, task.MaxMessage))
	return orNotMigrated(doing, wrap(doing, err))
}

// CancelRequested reports whether RequestCancel was called for a claim, and
// with what reason. Without the agent's schema it returns ErrNotMigrated, so
// that the caller need not ask again.
func (db *DB) CancelRequested(ctx context.Context, id task.ID, token task.Token) (reason string, ok bool, err error) {
	const doing = "look for a cancellation"
	err = db.row(ctx, []any{&reason}, `select reason from wrktalk_agent.cancellation where task = $1 and token = $2`,
		string(id), string(token))
	if errors.Is(err, pgx.ErrNoRows) {
		return "", false, nil
	}
	err = orNotMigrated(doing, wrap(doing, err))
	return reason, err == nil, err
}

// orNotMigrated makes an error of a table that is missing, for example because
// an older program migrated, or that may not be used, ErrNotMigrated.
func orNotMigrated(doing string, err error) error {
	if errors.Is(err, ErrSchema) || errors.Is(err, ErrPermission) {
		return &Error{doing: doing, cause: ErrNotMigrated}
	}
	return err
}
