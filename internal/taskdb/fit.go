package taskdb

// openTasks is a common table expression: every task that is not ended, with
// the chart type whose agents it belongs to in the column chart. Null there
// means that any agent may take it. The rule, first match wins:
//
//  1. The artifact's chart type is helm or compose: that one.
//  2. The artifact has any other chart type: any agent, so that the task is
//     failed with a clear message instead of pending for ever.
//  3. There is no artifact, or the row it names is gone, the task is a
//     rollback, and artifacts of exactly one chart type are flagged: that one.
//     What was applied tells more than deployment_config, where backends keep a
//     single row whose type may be the other one.
//  4. deployment_config names no deployment type: any agent. Names it exactly
//     one: that one's.
//  5. It names both, and the task is no rollback: any agent; it can only be
//     failed.
//  6. It names both, and the task is a rollback: the chart type that was
//     applied last among those that have a previous artifact; else among those
//     that have a current one; else helm. Helm also wins a tie.
const openTasks = `
	shape as (
		select bool_or(lower(btrim(deployment_type::text)) = 'kubernetes') as helm,
			bool_or(lower(btrim(deployment_type::text)) = 'docker') as compose
		from deployment_config
	), flagged as (
		select lower(btrim(chart_type::text)) as chart, bool_or(is_previous) as previous,
			max(applied_at) filter (where is_current) as applied
		from release_artifact
		where (is_current or is_previous) and lower(btrim(chart_type::text)) in ('helm', 'compose')
		group by 1
	), without_artifact as (
		select case
			when helm and compose then 'both'
			when helm then 'helm'
			when compose then 'compose' end as chart,
			coalesce((select f.chart from flagged f
				order by coalesce(f.previous, false) desc, f.applied desc nulls last, f.chart desc limit 1),
				'helm') as rollback,
			(select min(f.chart) from flagged f having count(*) = 1) as sole
		from shape
	), open_tasks as (
		select t.id::text as id, t.type::text as kind, t.status::text as status,
			t.release_artifact_id::text as artifact_id, a.release_version::text as version,
			t.picked_up_at::text as token,
			t.execute_after, t.created_at,
			coalesce(greatest(t.last_heartbeat, t.picked_up_at), t.updated_at, t.created_at) as seen,
			case
				when a.id is not null then
					case when lower(btrim(a.chart_type::text)) in ('helm', 'compose')
						then lower(btrim(a.chart_type::text)) end
				when btrim(t.type::text) = 'rollback' and w.sole is not null then w.sole
				when w.chart <> 'both' then w.chart
				when btrim(t.type::text) = 'rollback' and w.chart = 'both' then w.rollback
			end as chart
		from agent_task t
		cross join without_artifact w
		left join release_artifact a on a.id::text = t.release_artifact_id::text
		where t.status::text in ('pending', 'inProgress')
	)`
