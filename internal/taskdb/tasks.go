package taskdb

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// TaskRow is a row of agent_task with what people want to know about it. Ages
// are by the database's clock; times that are null are nil.
type TaskRow struct {
	ID             task.ID         `json:"id"`
	Kind           task.Kind       `json:"type"`
	Status         task.Status     `json:"status"`
	ArtifactID     string          `json:"artifact_id,omitempty"`
	ReleaseVersion string          `json:"release_version,omitempty"`
	ChartType      task.ChartType  `json:"chart_type,omitempty"`
	Token          task.Token      `json:"-"`
	ExecuteAfter   *time.Time      `json:"execute_after,omitempty"`
	PickedUpAt     *time.Time      `json:"picked_up_at,omitempty"`
	CompletedAt    *time.Time      `json:"completed_at,omitempty"`
	LastHeartbeat  *time.Time      `json:"last_heartbeat,omitempty"`
	Result         json.RawMessage `json:"result,omitempty"` // nil unless it is valid JSON
	ErrorMessage   string          `json:"error_message,omitempty"`
	CreatedAt      *time.Time      `json:"created_at,omitempty"`
	UpdatedAt      *time.Time      `json:"updated_at,omitempty"`

	// DueIn is how long a pending task still waits; negative when it is due.
	DueIn time.Duration `json:"-"`
	// HeartbeatAge is how long ago a task in progress was heard of; nil when it
	// never was, or is not in progress.
	HeartbeatAge *time.Duration `json:"-"`
}

const taskColumns = `t.id::text, t.type::text, t.status::text, coalesce(t.release_artifact_id::text, ''),
	coalesce(a.release_version::text, ''), coalesce(lower(btrim(a.chart_type::text)), ''),
	coalesce(t.picked_up_at::text, ''), t.execute_after::timestamptz, t.picked_up_at::timestamptz,
	t.completed_at::timestamptz, t.last_heartbeat::timestamptz, t.result::text, coalesce(t.error_message, ''),
	t.created_at::timestamptz, t.updated_at::timestamptz,
	case when isfinite(t.execute_after) then extract(epoch from t.execute_after - clock_timestamp())::float8
		when t.execute_after = 'infinity' then 1e300 end,
	case when t.status::text = 'inProgress' and isfinite(greatest(t.last_heartbeat, t.picked_up_at))
		then extract(epoch from clock_timestamp() - greatest(t.last_heartbeat, t.picked_up_at))::float8 end`

const taskTables = ` from agent_task t left join release_artifact a on a.id::text = t.release_artifact_id::text `

func scanTask(row pgx.Row) (TaskRow, error) {
	var (
		t                                               TaskRow
		after, picked, completed, beat, created, update timestamp
		result                                          *string
		due, age                                        *float64
	)
	err := row.Scan(&t.ID, &t.Kind, &t.Status, &t.ArtifactID, &t.ReleaseVersion, &t.ChartType, &t.Token,
		&after, &picked, &completed, &beat, &result, &t.ErrorMessage, &created, &update, &due, &age)
	if err != nil {
		return t, err
	}
	t.ExecuteAfter, t.PickedUpAt, t.CompletedAt = after.instant(), picked.instant(), completed.instant()
	t.LastHeartbeat, t.CreatedAt, t.UpdatedAt = beat.instant(), created.instant(), update.instant()
	if result != nil && json.Valid([]byte(*result)) {
		t.Result = json.RawMessage(*result)
	}
	if d := seconds(due); d != nil {
		t.DueIn = *d
	}
	t.HeartbeatAge = seconds(age)
	return t, nil
}

// Task returns one task; ErrNotFound without it.
func (db *DB) Task(ctx context.Context, id task.ID) (TaskRow, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	t, err := scanTask(db.pool.QueryRow(ctx, `select `+taskColumns+taskTables+`where t.id = $1`, string(id)))
	return t, wrap(fmt.Sprintf("read task %q", id), noSuchID(err))
}

// TaskFilter says which tasks to list. The zero value is the last 20 of all.
type TaskFilter struct {
	Statuses []task.Status  // none is any
	Chart    task.ChartType // only tasks whose artifact is of this type; "" is any
	IDPrefix string         // only ids that begin like this
	Limit    int            // 0 is 20
}

// Tasks lists tasks, the one that changed last first.
func (db *DB) Tasks(ctx context.Context, f TaskFilter) ([]TaskRow, error) {
	statuses := []string{}
	for _, s := range f.Statuses {
		statuses = append(statuses, string(s))
	}
	if f.Limit <= 0 {
		f.Limit = 20
	}
	return db.tasks(ctx, `
		select t.id, coalesce(t.completed_at, t.picked_up_at, t.created_at) as moment from agent_task t
		where (cardinality($1::text[]) = 0 or t.status::text = any($1::text[]))
			and ($2::text = '' or t.release_artifact_id::text in (
				select id::text from release_artifact where lower(btrim(chart_type::text)) = $2::text))
			and starts_with(t.id::text, $3::text)
		order by moment desc nulls last, t.id
		limit $4::int`, "p.moment desc nulls last, t.id", statuses, string(f.Chart), f.IDPrefix, f.Limit)
}

// tasks returns the rows whose ids the query picks, of which there are few, ordered
// like those: p is the query, t the task. The tables may be large, and their ids of
// types that have no common index, so they are joined for those rows alone.
func (db *DB) tasks(ctx context.Context, query, order string, args ...any) ([]TaskRow, error) {
	rows, err := list(ctx, db, func(row pgx.CollectableRow) (TaskRow, error) { return scanTask(row) },
		`with p as materialized (`+query+`) select `+taskColumns+` from p join agent_task t on t.id = p.id
			left join release_artifact a on a.id::text = t.release_artifact_id::text order by `+order, args...)
	return rows, wrap("list tasks", err)
}

// Status is what the database says about one target.
type Status struct {
	Current     *Artifact // nil when none is flagged
	Previous    *Artifact
	Maintenance bool
	LastPoll    *time.Time // nil when no agent ever asked
	LastPollAge time.Duration
	Pending     int            // tasks that wait, due or not
	NextDue     *time.Duration // of the first of them; 0 when it is due, nil without any
	Queue       []TaskRow      // the first ten of them, in the order in which they are taken
	InProgress  []TaskRow
	Recent      []TaskRow // the last five that ended, newest first

	// OtherPending counts the tasks that wait for agents of another chart
	// type, OtherDue those of them that are due: no agent of this target takes
	// them.
	OtherPending, OtherDue int
}

// Status returns a summary of the target: what serves, what an agent does, and
// what waits for it.
func (db *DB) Status(ctx context.Context, target Target) (*Status, error) {
	chart := target.Chart()
	s := &Status{}
	var err error
	if s.Current, err = db.Current(ctx, chart); err != nil && !isNotFound(err) {
		return nil, err
	}
	if s.Previous, err = db.Previous(ctx, chart); err != nil && !isNotFound(err) {
		return nil, err
	}
	if s.Maintenance, err = db.Maintenance(ctx, target); err != nil {
		return nil, err
	}
	if s.LastPoll, s.LastPollAge, err = db.LastPoll(ctx, target); err != nil {
		return nil, err
	}
	var due *float64
	var queue []string
	err = db.row(ctx, []any{&queue, &s.Pending, &due, &s.OtherPending, &s.OtherDue}, `with `+openTasks+`, waiting as materialized (
			select id, execute_after, created_at, coalesce(chart, $1::text) = $1::text as mine from open_tasks where status = 'pending'
		), first as (select min(execute_after) as due from waiting where mine)
		select array(select id from waiting where mine order by execute_after, created_at, id limit 10),  count(*) filter (where mine), (select case when due = '-infinity' then 0 when due < 'infinity'
				then greatest(0, extract(epoch from due - clock_timestamp()))::float8 end from first),
			count(*) filter (where not mine), count(*) filter (where not mine and execute_after <= clock_timestamp())
		from waiting`, string(chart))
	if err != nil {
		return nil, wrap("count the pending tasks", err)
	}
	s.NextDue = seconds(due)
	s.Queue, err = db.tasks(ctx, `select id from agent_task where id::text = any($1::text[])`,
		"t.execute_after, t.created_at, t.id", queue)
	if err != nil {
		return nil, err
	}
	s.InProgress, err = db.tasks(ctx, `select t.id from agent_task t where t.id::text in (with `+openTasks+`
			select id from open_tasks where status = 'inProgress' and coalesce(chart, $1::text) = $1::text)
		order by t.picked_up_at, t.id limit 20`, "t.picked_up_at, t.id", string(chart))
	if err != nil {
		return nil, err
	}
	// Without an artifact nothing tells whose task an ended one was.
	s.Recent, err = db.tasks(ctx, `select t.id from agent_task t where t.status::text in ('completed', 'failed')
			and not exists (select 1 from release_artifact a
				where a.id::text = t.release_artifact_id::text and lower(btrim(a.chart_type::text)) <> $1::text)
		order by t.completed_at desc nulls last, t.id limit 5`, "t.completed_at desc nulls last, t.id", string(chart))
	if err != nil {
		return nil, err
	}
	return s, nil
}

// WaitsFor returns the chart type whose agents an open task waits for, by the
// rule of Claim; "" when any agent may take it or it is not open any more.
func (db *DB) WaitsFor(ctx context.Context, id task.ID) (task.ChartType, error) {
	var chart string
	err := wrap("find out whose task it is", db.row(ctx, []any{&chart},
		`with `+openTasks+` select coalesce(chart, '') from open_tasks where id = $1`, string(id)))
	if isNotFound(err) {
		return "", nil
	}
	return task.ChartType(chart), err
}

// DeploymentTypes returns the deployment types that deployment_config names.
func (db *DB) DeploymentTypes(ctx context.Context) ([]string, error) {
	var types []string
	err := db.row(ctx, []any{&types}, `select coalesce(array_agg(distinct lower(btrim(deployment_type::text))
		order by lower(btrim(deployment_type::text))), '{}')::text[]
		from deployment_config where btrim(deployment_type::text) <> ''`)
	return types, wrap("read deployment_config.deployment_type", err)
}
