package taskdb

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// moveFlags records that artifact id serves now: it becomes the current one,
// and the one that served the previous one, by a deployment and by a rollback
// alike. Applied again, the current artifact only gets a new time, and the
// previous one stays.
//
// Only rows of the artifact's chart type are touched, and of those only the
// ones that change.
func moveFlags(ctx context.Context, tx pgx.Tx, id string) error {
	var chart string
	var current bool
	err := tx.QueryRow(ctx, `select lower(btrim(chart_type::text)), coalesce(is_current, false)
		from release_artifact where id = $1 for update`, id).Scan(&chart, &current)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // deleted meanwhile: the task is recorded, there is nothing to flag
	}
	if err != nil {
		return err
	}
	if current {
		_, err = tx.Exec(ctx, `update release_artifact set applied_at = now() where id = $1`, id)
		return err
	}
	// Where nothing served, a previous artifact stays as it is.
	_, err = tx.Exec(ctx, `
		with own as (
			select id, is_current, is_previous, applied_at, created_at from release_artifact
			where lower(btrim(chart_type::text)) = $2::text
		), target as (
			select id from own where (is_current or is_previous) and id::text <> $1::text
			order by coalesce(is_current, false) desc, applied_at desc nulls last, created_at desc nulls last, id desc limit 1
		), wanted as (
			select o.id, o.id::text = $1::text as is_current, coalesce(o.id = (select id from target), false) as is_previous
			from own o
		)
		update release_artifact a set is_current = w.is_current, is_previous = w.is_previous,
			applied_at = case when w.is_current then now() else a.applied_at end
		from wanted w
		where w.id = a.id and (w.is_current or (coalesce(a.is_current, false), coalesce(a.is_previous, false))
			is distinct from (w.is_current, w.is_previous))`, id, chart)
	return err
}

// RollbackTarget returns the artifact that a rollback which names none goes
// back to: the previous one, unless a rollback left that one behind and it was
// not applied since. That is the release an administrator judged bad, and a
// second rollback must not bring it back; it goes on to the artifact applied
// last among those that were never left behind like that. ErrNotFound when
// there is none.
func (db *DB) RollbackTarget(ctx context.Context, chart task.ChartType) (*Artifact, error) {
	// An artifact's time is that of the task which applied it. It was left behind
	// by a rollback if the next task of its chart type that completed was one: of
	// the tasks in the order of their times, the one after those up to its own.
	a, err := db.artifact(ctx, `id in (
		with ended as (
			select t.completed_at as at, btrim(t.type::text) = 'rollback' as back from agent_task t
			left join release_artifact o on o.id::text = t.release_artifact_id::text
			where t.status::text = 'completed' and t.completed_at is not null
				and coalesce(lower(btrim(o.chart_type::text)), $1::text) = $1::text
		), moments as (
			select id, applied_at as at, null::boolean as back, coalesce(is_previous, false) as previous, created_at
			from release_artifact where lower(btrim(chart_type::text)) = $1::text
				and not coalesce(is_current, false) and (is_previous or applied_at is not null)
			union all select null, at, back, null, null from ended
		), counted as (select *, count(back) over (order by at) as before from moments)
		select c.id from counted c
		where c.id is not null and not coalesce((select array_agg(back order by at) from ended)[c.before + 1], false)
		order by c.previous desc, c.at desc nulls last, c.created_at desc nulls last, c.id desc limit 1)`, string(chart))
	return a, wrap(fmt.Sprintf("find the %s artifact to roll back to", chart), err)
}
