package taskdb

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// moveFlags records that artifact id serves now.
//
// Applied again, the current artifact only gets a new time, and the rollback
// target stays. A deployment makes the artifact that served the rollback
// target. A rollback does not: what it leaves behind is the release that an
// administrator just judged bad, and the next rollback must not bring it back.
// Its target becomes the artifact that was applied last before id was, leaving
// out every one that a rollback left behind and nobody has applied since;
// where there is none, no rollback is on offer.
//
// Only rows of the artifact's chart type are touched, and of those only the
// ones that change.
func moveFlags(ctx context.Context, tx pgx.Tx, id string, kind task.Kind) error {
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
	_, err = tx.Exec(ctx, `
		with own as (
			select id, is_current, is_previous, applied_at, created_at from release_artifact
			where lower(btrim(chart_type::text)) = $2::text
		), served as (
			select id from own where is_current order by applied_at desc nulls last, created_at desc nulls last, id desc limit 1
		), before as (
			select o.id from own o
			where o.applied_at < (select applied_at from own where id::text = $1::text)
				and o.id not in (select id from served)
				and not coalesce((
					select btrim(t.type::text) = 'rollback' from agent_task t
					left join release_artifact a on a.id::text = t.release_artifact_id::text
					where t.status::text = 'completed' and t.completed_at > o.applied_at and t.completed_at < now()
						and coalesce(lower(btrim(a.chart_type::text)), $2::text) = $2::text
					order by t.completed_at limit 1), false)
			order by o.applied_at desc, o.created_at desc nulls last, o.id desc limit 1
		), target as (
			select case
				when not exists (select from served) then (select id from own where is_previous
					and id::text <> $1::text order by applied_at desc nulls last, id limit 1)
				when $3::boolean then (select id from before)
				else (select id from served) end as id
		), wanted as (
			select o.id, o.id::text = $1::text as is_current,
				coalesce(o.id = (select id from target), false) as is_previous
			from own o
		)
		update release_artifact a set is_current = w.is_current, is_previous = w.is_previous,
			applied_at = case when w.is_current then now() else a.applied_at end
		from wanted w
		where w.id = a.id and (w.is_current or (coalesce(a.is_current, false), coalesce(a.is_previous, false))
			is distinct from (w.is_current, w.is_previous))`, id, chart, kind == task.KindRollback)
	return err
}
