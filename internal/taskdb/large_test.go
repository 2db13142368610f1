package taskdb_test

import (
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// A backend that never removes a task leaves a hundred thousand after some years.
// None of our questions may look at each of them for each release: that ends in the
// limit of time of a call.
func TestManyTasks(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	raw.SQL(t, `insert into release_artifact (release_version, chart_type, artifact_data, sha256, applied_at, is_current)
			select 'v' || n, 'helm', 'x', 'y', now() - n * interval '100 s', n = 0 from generate_series(0, 999) n;
		insert into agent_task (type, status, release_artifact_id, execute_after, completed_at)
			select case when n = 0 then 'rollback' else 'deploy' end, 'completed', a.id, now() - n * interval '1 s', now() - n * interval '1 s'
			from generate_series(0, 99999) n join release_artifact a on a.release_version = 'v' || n / 100;
		insert into agent_task (type, status, release_artifact_id, execute_after)
			select 'deploy', 'pending', a.id, now() - n * interval '1 s' from generate_series(1, 20000) n
			join release_artifact a on a.release_version = 'v' || n % 1000;
		analyze`)
	if a, err := db.RollbackTarget(t.Context(), task.ChartHelm); err != nil || a.Version != "v1" {
		t.Errorf("rollback target: %+v, %v", a, err)
	}
	s, err := db.Status(t.Context(), helm)
	if err != nil || s.Pending != 20000 || len(s.Queue) != 10 || len(s.Recent) != 5 || s.Recent[0].Kind != task.KindRollback ||
		s.Queue[0].ReleaseVersion != "v0" || s.Queue[1].ReleaseVersion != "v999" {
		t.Errorf("status: %+v, %v", s, err)
	}
	if rows, err := db.Tasks(t.Context(), taskdb.TaskFilter{Chart: task.ChartHelm}); err != nil || len(rows) != 20 {
		t.Errorf("%d tasks: %v", len(rows), err)
	}
	mustClaim(t, db, helm)
}
