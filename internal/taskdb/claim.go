package taskdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Task is a task as the fetcher sees it.
type Task struct {
	ID           task.ID
	Kind         task.Kind // raw: may be of no known kind
	ArtifactID   string    // "" when the row names none
	Version      string    // the artifact's release version, "" without one
	Token        task.Token
	ExecuteAfter time.Time     // zero when the row holds no instant
	Late         time.Duration // from ExecuteAfter to the claim; set by the claim
	CreatedAt    time.Time     // zero when not known

	// TakenOver is true when another claim's lease had expired; FormerToken is
	// that claim's, "" when the row had none.
	TakenOver   bool
	FormerToken task.Token

	// HeartbeatAge is how long ago the task gave its last sign of life, for one
	// in progress.
	HeartbeatAge time.Duration
}

// ClaimOptions says how to claim.
type ClaimOptions struct {
	Lease time.Duration // a task in progress that was silent for longer is taken over
	Owner string        // who claims, for the attempts of a migrated database
	Claim bool          // false only looks, and takes nothing
	// Except are claims that have ended although their rows are in progress: they
	// neither hold others up nor are they taken over.
	Except map[task.ID]task.Token
	// Record is called with the task that is about to be claimed, token
	// included, before the claim is committed: whoever keeps the token durably
	// there can tell after a crash, or a lost reply, whether the claim is his. Its
	// error gives the claim up. It may be nil.
	Record func(Task) error
}

// Claim is what asking for a task came to.
type Claim struct {
	Task *Task // ours now, or nil
	// Busy is another task of this target, in progress with a live lease: the
	// reason why nothing was taken. LeaseLeft is when its lease expires unless
	// it is heard of again.
	Busy      *Task
	LeaseLeft time.Duration
	// NextDue is how long it takes until the next pending task of this target
	// is due, by the database's clock; 0 when none is waiting for its time.
	NextDue time.Duration
	// Due and Scheduled count the pending tasks of this target that nobody has
	// taken: those that could begin now, and those that wait for their time. They
	// are not counted beyond 200, nor when the claim was contended.
	Due, Scheduled int
	// Contended is true when another agent of this target was claiming at the
	// same moment: nothing was looked at.
	Contended bool
}

// lockClass is the first key of the agent's advisory locks ("wrk" in ASCII);
// the second is the platform's.
const lockClass = 0x77726b

// Claim asks for a task and takes at most one, in one short transaction.
//
// A task in progress whose lease has expired comes first, then the pending task
// that has been due for the longest. Only tasks that fit the target are taken,
// and none while another one of the target is in progress with a live lease. An
// advisory lock per target keeps two agents from deciding at the same time; rows
// that somebody else has locked are left out.
//
// The poll is recorded in the target's deployment_config row.
func (db *DB) Claim(ctx context.Context, target Target, opts ClaimOptions) (*Claim, error) {
	const doing = "claim a task"
	if target.Chart() == "" {
		return nil, fmt.Errorf("%s: unknown deployment type %q", doing, target.Deployment)
	}
	var claim *Claim
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		claim, err = db.claim(ctx, tx, target, opts)
		return err
	})
	if errors.Is(err, errCommitUnknown) && claim.Task != nil {
		err = db.confirmClaim(ctx, claim.Task, err)
	}
	if err != nil {
		return nil, wrap(doing, err)
	}
	if claim.Task != nil && opts.Owner != "" {
		// Best effort: the attempt is for people, and the claim stands without it.
		_ = db.RecordAttempt(ctx, Attempt{
			TaskID: claim.Task.ID, Token: claim.Task.Token, Owner: opts.Owner, Note: attemptNote(claim.Task),
		})
	}
	return claim, nil
}

func attemptNote(t *Task) string {
	if !t.TakenOver {
		return ""
	}
	return fmt.Sprintf("taken over after %s of silence", t.HeartbeatAge.Round(time.Second))
}

func (db *DB) claim(ctx context.Context, tx pgx.Tx, target Target, opts ClaimOptions) (*Claim, error) {
	_, err := tx.Exec(ctx, `update deployment_config set last_agent_poll = clock_timestamp()
		where id = (select id from deployment_config where id = `+configRow+` for update skip locked)`,
		target.configArgs()...)
	if err != nil {
		return nil, err
	}
	var locked bool
	err = tx.QueryRow(ctx, `select pg_try_advisory_xact_lock($1::int, $2::int)`, int32(lockClass), platform.Of(target.Deployment).LockKey).Scan(&locked)
	if err != nil {
		return nil, err
	}
	if !locked {
		return &Claim{Contended: true}, nil
	}
	// A new statement sees what was committed before the lock was got.
	open, err := db.candidates(ctx, tx, target, opts.Lease)
	if err != nil {
		return nil, err
	}
	open = slices.DeleteFunc(open, func(c candidate) bool {
		token, ended := opts.Except[c.ID]
		return ended && c.inProgress && token == c.Token
	})
	claim := &Claim{}
	for _, c := range open {
		switch {
		case c.inProgress && !c.stale:
			claim.Busy, claim.LeaseLeft = &c.Task, max(0, opts.Lease-c.HeartbeatAge)
		case !c.inProgress && c.dueIn > 0 && (claim.NextDue == 0 || c.dueIn < claim.NextDue):
			claim.NextDue = c.dueIn
		}
		switch {
		case !c.inProgress && c.dueIn > 0:
			claim.Scheduled++
		case !c.inProgress:
			claim.Due++
		}
	}
	if claim.Busy != nil || !opts.Claim {
		return claim, nil
	}
	for _, c := range open {
		if !c.stale && (c.inProgress || c.dueIn > 0) {
			continue
		}
		taken, err := take(ctx, tx, &c, opts.Lease)
		if err != nil {
			return nil, err
		}
		if !taken {
			continue
		}
		if opts.Record != nil {
			if err := opts.Record(c.Task); err != nil {
				return nil, err
			}
		}
		claim.Task = &c.Task
		if !c.stale {
			claim.Due--
		}
		return claim, nil
	}
	return claim, nil
}

// candidate is an open task of the target.
type candidate struct {
	Task
	inProgress bool
	stale      bool          // in progress, and its lease has expired
	dueIn      time.Duration // pending: until it is due, 0 when it is
}

// candidates lists what the target could do, in the order in which it should
// be done: stale tasks, the due ones, and of those that wait for their time
// the first.
func (db *DB) candidates(ctx context.Context, tx pgx.Tx, target Target, lease time.Duration) ([]candidate, error) {
	// now is fixed for the statement, so that a task is either due or waits. Without
	// materialized the limit lures the planner into comparing every task with every
	// artifact: it cannot tell how few have the same id, since ids are compared as text.
	rows, err := tx.Query(ctx, `with `+openTasks+`, clock as materialized (select clock_timestamp() as now), mine as materialized (
			select o.*, o.status = 'inProgress' as in_progress,
				case when o.status = 'inProgress' then case
					when o.seen is null or o.seen = '-infinity' then $2::float8 + 1
					when o.seen = 'infinity' then 0
					else extract(epoch from c.now - o.seen)::float8 end end as age,
				case when o.status = 'pending' and o.execute_after > c.now then case
					when o.execute_after = 'infinity' then null
					else extract(epoch from o.execute_after - c.now)::float8 end
				else 0 end as due_in
			from open_tasks o cross join clock c
			where coalesce(o.chart, $1::text) = $1::text)
		select id, kind, coalesce(artifact_id, ''), coalesce(version, ''), coalesce(token, ''), execute_after::timestamptz, created_at::timestamptz,
			in_progress, coalesce(in_progress and age > $2::float8, false), age, due_in
		from mine
		where due_in is not null
		order by in_progress desc, mine.execute_after, mine.created_at, mine.id
		limit 200`, string(target.Chart()), lease.Seconds())
	if err != nil {
		return nil, err
	}
	return pgx.AppendRows([]candidate(nil), rows, func(row pgx.CollectableRow) (c candidate, err error) {
		var after, created timestamp
		var age, due *float64
		err = row.Scan(&c.ID, &c.Kind, &c.ArtifactID, &c.Version, &c.Token, &after, &created, &c.inProgress, &c.stale, &age, &due)
		if err != nil {
			return c, err
		}
		if t := after.instant(); t != nil {
			c.ExecuteAfter = *t
		}
		if t := created.instant(); t != nil {
			c.CreatedAt = *t
		}
		if d := seconds(age); d != nil {
			c.HeartbeatAge = *d
		}
		if d := seconds(due); d != nil && *due > 0 {
			// Rounded up: whoever waits that long must not wake too early.
			c.dueIn = d.Truncate(time.Millisecond) + time.Millisecond
		}
		return c, nil
	})
}

// take makes one candidate ours, unless it changed or is locked. The row's
// conditions are checked again under its lock.
func take(ctx context.Context, tx pgx.Tx, c *candidate, lease time.Duration) (bool, error) {
	former := c.Token
	var late *float64
	err := tx.QueryRow(ctx, `
		with free as (
			select id from agent_task
			where id = $1 and (
				$2::boolean and status::text = 'inProgress' and coalesce(picked_up_at::text, '') = $3::text
					and coalesce(coalesce(greatest(last_heartbeat, picked_up_at), updated_at, created_at)
						< clock_timestamp() - make_interval(secs => $4::float8), true)
				or not $2::boolean and status::text = 'pending' and execute_after <= clock_timestamp())
			for update skip locked
		), stamp as materialized (select clock_timestamp() as now)
		update agent_task t set status = 'inProgress', picked_up_at = s.now, last_heartbeat = s.now, updated_at = s.now
		from free f, stamp s where t.id = f.id
		returning t.picked_up_at::text, case when isfinite(t.execute_after)
			then extract(epoch from s.now - t.execute_after)::float8 end`,
		string(c.ID), c.stale, string(former), lease.Seconds()).Scan(&c.Token, &late)
	if errors.Is(err, pgx.ErrNoRows) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	if d := seconds(late); d != nil {
		c.Late = max(0, *d)
	}
	if c.stale {
		c.TakenOver, c.FormerToken = true, former
	}
	return true, nil
}

// confirmClaim finds out whether a claim whose commit got no reply holds, and
// returns nil when it does.
func (db *DB) confirmClaim(ctx context.Context, t *Task, lost error) error {
	held := errors.New("the claim was not committed")
	err := retryTransient(ctx, confirmAttempts, func() error {
		var token string
		err := db.row(ctx, []any{&token}, `select coalesce(picked_up_at::text, '') from agent_task
			where id = $1 and status::text = 'inProgress'`, string(t.ID))
		if err == nil && task.Token(token) == t.Token {
			held = nil
		}
		if errors.Is(err, pgx.ErrNoRows) {
			err = nil
		}
		return err
	})
	if err != nil {
		// It may hold: then its lease expires, and it is taken over.
		return lost
	}
	if held != nil {
		return fmt.Errorf("%w: %w", held, lost)
	}
	return nil
}
