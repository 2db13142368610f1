package taskdb

import "github.com/wrktalk/wrktalk-agent/internal/platform"

// caseOf is what stands between case and end in SQL, for a deployment type.
func caseOf(then func(platform.Platform) string) string {
	return platform.Join(platform.All, " ", func(p platform.Platform) string {
		return "when '" + string(p.Type) + "' then " + then(p)
	})
}

func quotedChart(p platform.Platform) string { return "'" + string(p.Chart) + "'" }

// charts lists the chart types that some agent deploys, as SQL.
var charts = platform.Join(platform.All, ", ", quotedChart)

// openTasks is a common table expression: every task that is not ended, with
// the chart type whose agents it belongs to in the column chart. Null there
// means that any agent may take it. The rule, first match wins:
//
//  1. The artifact's chart type is one of those in package platform: that one.
//  2. The artifact has any other chart type: any agent, so that the task is
//     failed with a clear message instead of pending for ever.
//  3. There is no artifact, or the row it names is gone, the task is a
//     rollback, and artifacts of exactly one chart type are flagged: that one.
//     What was applied tells more than deployment_config, where backends keep a
//     single row whose type may be another one.
//  4. deployment_config names no known deployment type: any agent. Names it
//     exactly one: that one's.
//  5. It names several, and the task is no rollback: any agent; it can only be
//     failed.
//  6. It names several, and the task is a rollback: the chart type that was
//     applied last among those that have a previous artifact; else among those
//     that have a current one; else the first platform's. That also wins a tie.
var openTasks = `
	configured as (
		select count(distinct chart) as charts, min(chart) as chart
		from (select case lower(btrim(deployment_type::text)) ` + caseOf(quotedChart) + ` end as chart from deployment_config) c
	), flagged as (
		select lower(btrim(chart_type::text)) as chart, bool_or(is_previous) as previous,
			max(applied_at) filter (where is_current) as applied
		from release_artifact
		where (is_current or is_previous) and lower(btrim(chart_type::text)) in (` + charts + `)
		group by 1
	), without_artifact as (
		select charts, chart,
			coalesce((select f.chart from flagged f
				order by coalesce(f.previous, false) desc, f.applied desc nulls last,
					array_position(array[` + charts + `], f.chart) limit 1),
				` + quotedChart(platform.All[0]) + `) as rollback,
			(select min(f.chart) from flagged f having count(*) = 1) as sole
		from configured
	), open_tasks as (
		select t.id::text as id, t.type::text as kind, t.status::text as status,
			t.release_artifact_id::text as artifact_id, a.release_version::text as version,
			t.picked_up_at::text as token,
			t.execute_after, t.created_at,
			coalesce(greatest(t.last_heartbeat, t.picked_up_at), t.updated_at, t.created_at) as seen,
			case
				when a.id is not null then
					case when lower(btrim(a.chart_type::text)) in (` + charts + `)
						then lower(btrim(a.chart_type::text)) end
				when btrim(t.type::text) = 'rollback' and w.sole is not null then w.sole
				when w.charts = 1 then w.chart
				when btrim(t.type::text) = 'rollback' and w.charts > 1 then w.rollback
			end as chart
		from agent_task t
		cross join without_artifact w
		left join release_artifact a on a.id::text = t.release_artifact_id::text
		where t.status::text in ('pending', 'inProgress')
	)`
