package taskdb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestClaimTakesTheOldestDueTask(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		artifact := pushArtifact(t, db, task.ChartHelm, "1")
		second := addTask(t, db, task.KindDeploy, artifact)
		first := addTask(t, db, task.KindDeploy, artifact)
		raw.SQL(t, fmt.Sprintf("update agent_task set execute_after = execute_after - interval '1 hour' where id = '%s'", first))

		got := mustClaim(t, db, helm)
		if got.ID != first || got.Kind != task.KindDeploy || got.ArtifactID != artifact || got.TakenOver || got.ExecuteAfter.IsZero() || got.CreatedAt.IsZero() {
			t.Errorf("claimed %+v, not task %s", got, first)
		}
		stored := raw.SQL(t, fmt.Sprintf(`set timezone = 'UTC'; select status, picked_up_at::text, picked_up_at = last_heartbeat
			from agent_task where id = '%s'`, first))
		if want := "inProgress|" + string(got.Token) + "|t"; stored != want {
			t.Errorf("the row holds %q, not %q", stored, want)
		}
		busy := claim(t, db, helm, claiming)
		if busy.Task != nil || busy.Busy == nil || busy.Busy.ID != first || busy.LeaseLeft <= 0 || busy.LeaseLeft > time.Hour {
			t.Errorf("while a task runs: %+v", busy)
		}
		finish(t, db, got, artifact, true)
		if got := mustClaim(t, db, helm); got.ID != second {
			t.Errorf("claimed %s next, not %s", got.ID, second)
		}
	})
}

func TestClaimHonoursExecuteAfter(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		if c := claim(t, db, helm, claiming); *c != (taskdb.Claim{}) {
			t.Errorf("an empty database: %+v", c)
		}
		for _, in := range []string{"90 seconds", "1 hour"} {
			raw.SQL(t, insertTask("deploy", "pending", "clock_timestamp() + interval '"+in+"'"))
		}
		raw.SQL(t, insertTask("deploy", "pending", "'infinity'"))
		c := claim(t, db, helm, claiming)
		if c.Task != nil || c.NextDue < 60*time.Second || c.NextDue > 91*time.Second {
			t.Errorf("before the time: %+v", c)
		}
		raw.SQL(t, insertTask("deploy", "pending", "'-infinity'"))
		if got := mustClaim(t, db, helm); !got.ExecuteAfter.IsZero() {
			t.Errorf("claimed %+v", got)
		}
		if c := claim(t, db, helm, taskdb.ClaimOptions{Lease: time.Hour}); c.Busy == nil {
			t.Errorf("looking only: %+v", c)
		}
	})
}

var taskCount struct {
	sync.Mutex
	n int
}

// insertTask returns a statement that adds a task by hand, as some other
// backend would, without an artifact.
func insertTask(kind, status, executeAfter string) string {
	taskCount.Lock()
	defer taskCount.Unlock()
	taskCount.n++
	return fmt.Sprintf(`insert into agent_task (id, type, status, execute_after)
		values (%s, '%s', '%s', (%s)::timestamptz at time zone 'UTC')`, freshID("agent_task", taskCount.n), kind, status, executeAfter)
}

// freshID returns an SQL expression for the n-th id that a test makes up itself, of
// the type that the table's ids have.
func freshID(table string, n int) string {
	return fmt.Sprintf(`(select (jsonb_populate_record(null::%s, jsonb_build_object('id',
		case format_type(atttypid, null) when 'bigint' then '%d' else '00000000-0000-4000-8000-%012d' end))).id
		from pg_attribute where attrelid = '%[1]s'::regclass and attname = 'id')`, table, 1_000_000+n, n)
}

// Many agents of two targets claim and finish at the same time: each task is
// done exactly once, and never two of a target at once.
func TestDefect09OneTaskOfATargetAtATime(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		const perTarget, agents = 12, 5
		artifacts := map[task.DeploymentType]string{
			task.DeploymentKubernetes: pushArtifact(t, db, task.ChartHelm, "1"),
			task.DeploymentDocker:     pushArtifact(t, db, task.ChartCompose, "1"),
		}
		for range perTarget {
			addTask(t, db, task.KindDeploy, artifacts[task.DeploymentKubernetes])
			addTask(t, db, task.KindDeploy, artifacts[task.DeploymentDocker])
		}
		var mu sync.Mutex
		winners := map[task.ID]int{}
		running := map[task.DeploymentType]int{}
		left := map[task.DeploymentType]int{task.DeploymentKubernetes: perTarget, task.DeploymentDocker: perTarget}

		var group sync.WaitGroup
		agent := func(target taskdb.Target) {
			for {
				mu.Lock()
				done := left[target.Deployment] == 0
				mu.Unlock()
				if done {
					return
				}
				c, err := db.Claim(t.Context(), target, claiming)
				if err != nil {
					t.Error(err)
					return
				}
				if c.Task == nil {
					continue
				}
				mu.Lock()
				winners[c.Task.ID]++
				if running[target.Deployment]++; running[target.Deployment] > 1 {
					t.Errorf("%d tasks of %s run at once", running[target.Deployment], target.Deployment)
				}
				mu.Unlock()
				if err := db.Heartbeat(t.Context(), c.Task.ID, c.Task.Token); err != nil {
					t.Error(err)
				}
				mu.Lock()
				running[target.Deployment]--
				left[target.Deployment]--
				mu.Unlock()
				if err := db.Finish(t.Context(), outcome(c.Task, artifacts[target.Deployment], true)); err != nil {
					t.Error(err)
				}
			}
		}
		for range agents {
			group.Go(func() { agent(helm) })
			group.Go(func() { agent(compose) })
		}
		group.Wait()
		for id, n := range winners {
			if n != 1 {
				t.Errorf("task %s was claimed %d times", id, n)
			}
		}
		if len(winners) != 2*perTarget {
			t.Errorf("%d tasks were claimed, not %d", len(winners), 2*perTarget)
		}
	})
}

func TestDefect08StaleTasksAreReclaimed(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		artifact := pushArtifact(t, db, task.ChartHelm, "1")
		pending := addTask(t, db, task.KindDeploy, artifact)
		old := mustClaim(t, db, helm)
		addTask(t, db, task.KindDeploy, artifact)
		if old.ID != pending {
			t.Fatalf("claimed %s", old.ID)
		}
		raw.SQL(t, "update agent_task set last_heartbeat = last_heartbeat - interval '59 minutes', picked_up_at = picked_up_at - interval '2 hours' where status = 'inProgress'")
		if c := claim(t, db, helm, claiming); c.Busy == nil || c.Busy.HeartbeatAge < 59*time.Minute {
			t.Fatalf("taken over within the lease: %+v", c)
		}
		raw.SQL(t, "update agent_task set last_heartbeat = last_heartbeat - interval '1 minute' where status = 'inProgress'")
		formerToken := raw.SQL(t, "set timezone = 'UTC'; select picked_up_at::text from agent_task where status = 'inProgress'")
		got := mustClaim(t, db, helm)
		if got.ID != old.ID || !got.TakenOver || string(got.FormerToken) != formerToken || got.Token == got.FormerToken || got.HeartbeatAge < time.Hour {
			t.Errorf("took over %+v", got)
		}
		// Every write of the former claim is fenced, and changes nothing.
		before := raw.SQL(t, "select * from agent_task order by id; select id, is_current, applied_at from release_artifact")
		former := *got
		former.Token = got.FormerToken
		if err := db.Heartbeat(t.Context(), former.ID, former.Token); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("heartbeat of the former claim: %v", err)
		}
		if err := db.Finish(t.Context(), outcome(&former, artifact, true)); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("finish of the former claim: %v", err)
		}
		if after := raw.SQL(t, "select * from agent_task order by id; select id, is_current, applied_at from release_artifact"); after != before {
			t.Errorf("the former claim changed\n%s\ninto\n%s", before, after)
		}
	})
}

// Rows that another program left in progress without any time still expire.
func TestDefect08TasksWithoutTimesAreReclaimed(t *testing.T) {
	t.Parallel()
	for name, times := range map[string]string{
		"nothing":                 "picked_up_at = null, last_heartbeat = null, updated_at = null, created_at = null",
		"only created":            "picked_up_at = null, last_heartbeat = null, updated_at = null, created_at = now() - interval '2 hours'",
		"old heartbeat, no claim": "picked_up_at = null, last_heartbeat = now() - interval '2 hours'",
		"infinitely old":          "picked_up_at = null, last_heartbeat = '-infinity'",
	} {
		t.Run(name, func(t *testing.T) {
			raw := testenv.Database(t)
			db := open(t, raw.ConnString)
			raw.SQL(t, insertTask("rollback", "inProgress", "now()")+"; update agent_task set "+times)
			got := mustClaim(t, db, helm)
			if !got.TakenOver || got.FormerToken != "" {
				t.Errorf("took over %+v", got)
			}
		})
	}
}

func TestDefect02HeartbeatsLand(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		addTask(t, db, task.KindRollback, "")
		got := mustClaim(t, db, helm)
		raw.SQL(t, "update agent_task set last_heartbeat = last_heartbeat - interval '10 minutes'")
		if err := db.Heartbeat(t.Context(), got.ID, got.Token); err != nil {
			t.Fatal(err)
		}
		row, err := db.Task(t.Context(), got.ID)
		if err != nil || row.HeartbeatAge == nil || *row.HeartbeatAge > time.Minute {
			t.Errorf("after a heartbeat: %+v, %v", row, err)
		}
		for id, token := range map[task.ID]task.Token{got.ID: "2020-01-01 00:00:00+00", "not an id": got.Token, "": ""} {
			if err := db.Heartbeat(t.Context(), id, token); !errors.Is(err, taskdb.ErrFenced) {
				t.Errorf("heartbeat of task %q with token %q: %v", id, token, err)
			}
		}
		finish(t, db, got, "", false)
		if err := db.Heartbeat(t.Context(), got.ID, got.Token); !errors.Is(err, taskdb.ErrFenced) {
			t.Errorf("heartbeat of a task that ended: %v", err)
		}
	})
}

func TestDefect10AgentsLeaveOtherTargetsAlone(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		forHelm := addTask(t, db, task.KindDeploy, pushArtifact(t, db, task.ChartHelm, "1"))
		if c := claim(t, db, compose, claiming); c.Task != nil || c.Busy != nil {
			t.Errorf("a Docker agent claimed a Helm task: %+v", c)
		}
		forCompose := addTask(t, db, task.KindDeploy, pushArtifact(t, db, task.ChartCompose, "1"))
		if got := mustClaim(t, db, compose); got.ID != forCompose {
			t.Errorf("the Docker agent claimed %s, not %s", got.ID, forCompose)
		}
		// The two targets work in parallel.
		if got := mustClaim(t, db, helm); got.ID != forHelm {
			t.Errorf("the Kubernetes agent claimed %s, not %s", got.ID, forHelm)
		}
	})
}

// Chart types are compared without case and blanks.
func TestDefect10ChartTypesAreNormalised(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	id := addTask(t, db, task.KindDeploy, pushArtifact(t, db, " Helm ", "1"))
	if c := claim(t, db, compose, claiming); c.Task != nil {
		t.Errorf("a Docker agent claimed it")
	}
	if got := mustClaim(t, db, helm); got.ID != id {
		t.Errorf("claimed %s", got.ID)
	}
}

func TestDefect07UnknownKindsAndChartTypesAreClaimed(t *testing.T) {
	t.Parallel()
	for _, target := range []taskdb.Target{helm, compose} {
		t.Run(string(target.Deployment), func(t *testing.T) {
			eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
				addTask(t, db, task.KindDeploy, pushArtifact(t, db, "nomad", "1"))
				got := mustClaim(t, db, target)
				finish(t, db, got, "", false)
				addTask(t, db, "reboot", "")
				if got = mustClaim(t, db, target); got.Kind != "reboot" {
					t.Errorf("claimed a task of kind %q", got.Kind)
				}
				finish(t, db, got, "", false)
			})
		})
	}
}

func TestTaskWithoutArtifactBelongsToOneTarget(t *testing.T) {
	t.Parallel()
	const both = "insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'kubernetes'), (gen_random_uuid(), ' Docker ')"
	flagged := func(chart, flag, at string) string {
		return fmt.Sprintf(`;insert into release_artifact (id, release_version, chart_type, artifact_data, sha256, %s, applied_at)
			values (gen_random_uuid(), '1', '%s', 'x', 'x', true, '%s')`, flag, chart, at)
	}
	for name, test := range map[string]struct {
		setup string
		kind  task.Kind
		want  []task.DeploymentType // who may claim it
	}{
		"no config":              {"select", task.KindRollback, []task.DeploymentType{"kubernetes", "docker"}},
		"one type, twice":        {"insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'DOCKER'), (gen_random_uuid(), 'docker')", task.KindRollback, []task.DeploymentType{"docker"}},
		"other type":             {"insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'kubernetes')", task.KindDeploy, []task.DeploymentType{"kubernetes"}},
		"no known type":          {"insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'bare')", task.KindRollback, []task.DeploymentType{"kubernetes", "docker"}},
		"both, no rollback":      {both, task.KindDeploy, []task.DeploymentType{"kubernetes", "docker"}},
		"both, nothing flagged":  {both, task.KindRollback, []task.DeploymentType{"kubernetes"}},
		"both, one has a target": {both + flagged("compose", "is_previous", "2020-01-01") + flagged("helm", "is_current", "2024-01-01"), task.KindRollback, []task.DeploymentType{"docker"}},
		"both, last applied": {
			both + flagged("compose", "is_previous", "2020-01-01") + flagged("compose", "is_current", "2024-01-01") +
				flagged("helm", "is_previous", "2020-01-01") + flagged("helm", "is_current", "2023-01-01"),
			task.KindRollback,
			[]task.DeploymentType{"docker"},
		},
		"other type, but only one was applied": {
			"insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'kubernetes')" +
				flagged("compose", "is_previous", "2020-01-01") + flagged("Compose", "is_current", "2024-01-01"),
			task.KindRollback,
			[]task.DeploymentType{"docker"},
		},
		"other type, both were applied": {
			"insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'kubernetes')" +
				flagged("compose", "is_previous", "2024-01-01") + flagged("helm", "is_current", "2020-01-01"),
			task.KindRollback,
			[]task.DeploymentType{"kubernetes"},
		},
		"other type, no rollback": {
			"insert into deployment_config (id, deployment_type) values (gen_random_uuid(), 'kubernetes')" + flagged("compose", "is_previous", "2020-01-01"),
			task.KindDeploy,
			[]task.DeploymentType{"kubernetes"},
		},
		"no config, only one was applied": {"select" + flagged("helm", "is_current", "2020-01-01"), task.KindRollback, []task.DeploymentType{"kubernetes"}},
		"both, only current":              {both + flagged("compose", "is_current", "2020-01-01"), task.KindRollback, []task.DeploymentType{"docker"}},
	} {
		t.Run(name, func(t *testing.T) {
			raw := testenv.Database(t)
			db := open(t, raw.ConnString)
			raw.SQL(t, test.setup)
			addTask(t, db, test.kind, "")
			var got []task.DeploymentType
			for _, target := range []taskdb.Target{helm, compose} {
				if c := claim(t, db, target, claiming); c.Task != nil {
					got = append(got, target.Deployment)
					raw.SQL(t, "update agent_task set status = 'pending'")
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("claimed by %v, not by %v", got, test.want)
			}
		})
	}
}

func TestDanglingArtifactIsClaimed(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t, testenv.VarcharIDs)
	db := open(t, raw.ConnString)
	raw.SQL(t, "alter table agent_task drop constraint agent_task_release_artifact_id_fkey")
	addTask(t, db, task.KindDeploy, "long gone")
	if got := mustClaim(t, db, helm); got.ArtifactID != "long gone" {
		t.Errorf("claimed %+v", got)
	}
}

// A row that somebody else holds locked is left out, not waited for.
func TestClaimSkipsLockedTasks(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	locked := addTask(t, db, task.KindRollback, "")
	free := addTask(t, db, task.KindRollback, "")
	holding := lockRow(t, raw.ConnString, locked)
	if got := mustClaim(t, db, helm); got.ID != free {
		t.Errorf("claimed %s, not %s", got.ID, free)
	}
	holding()
}

func TestClaimOfALostCommitReply(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	db := open(t, through)
	addTask(t, db, task.KindRollback, "")
	proxy.LoseReplyTo("commit", 1)
	got := mustClaim(t, db, helm)
	if proxy.Lost() != 1 {
		t.Fatalf("%d replies were lost", proxy.Lost())
	}
	if err := db.Heartbeat(t.Context(), got.ID, got.Token); err != nil {
		t.Errorf("the claim does not hold: %v", err)
	}
}

func TestDefect22OnlyTheOwnConfigRowIsTouched(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		for i, row := range []string{
			"'docker', null, null, 'other', '2020-01-01'", "'Docker', null, null, null, '2020-01-02'",
			"'kubernetes', 'staging', 'wrktalk', null, '2020-01-03'", "'kubernetes', 'prod', 'wrktalk', null, '2020-01-04'",
		} {
			raw.SQL(t, "insert into deployment_config (id, deployment_type, namespace, helm_release_name, compose_project_name, created_at) values ("+
				freshID("deployment_config", i+1)+", "+row+")")
		}
		touched := func() string {
			return raw.SQL(t, "select string_agg(right(id::text, 1), '' order by id) filter (where last_agent_poll is not null), string_agg(right(id::text, 1), '' order by id) filter (where maintenance_mode_enabled) from deployment_config")
		}
		for _, step := range []struct {
			target taskdb.Target
			want   string
		}{{helm, "4|4"}, {compose, "24|24"}} {
			claim(t, db, step.target, claiming)
			if err := db.SetMaintenance(t.Context(), step.target, true); err != nil {
				t.Fatal(err)
			}
			if got := touched(); got != step.want {
				t.Errorf("after %s: rows %s were touched, not %s", step.target.Deployment, got, step.want)
			}
		}
		if err := db.SetMaintenance(t.Context(), helm, false); err != nil {
			t.Fatal(err)
		}
		for target, want := range map[taskdb.Target]bool{helm: false, compose: true} {
			if on, err := db.Maintenance(t.Context(), target); err != nil || on != want {
				t.Errorf("maintenance of %s is %v, %v", target.Deployment, on, err)
			}
		}
		if at, age, err := db.LastPoll(t.Context(), helm); err != nil || at == nil || age > time.Minute {
			t.Errorf("the last poll was at %v, %s ago, %v", at, age, err)
		}
	})
}

func TestConfigRowFallsBack(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	ctx := t.Context()
	check := func(want string) {
		t.Helper()
		claim(t, db, helm, claiming)
		if err := errors.Join(db.SetMaintenance(ctx, helm, true)); err != nil {
			t.Fatal(err)
		}
		if got := raw.SQL(t, "select coalesce(string_agg(namespace, ','), '') from deployment_config where last_agent_poll is not null and maintenance_mode_enabled"); got != want {
			t.Errorf("touched %q, not %q", got, want)
		}
	}
	check("")
	raw.SQL(t, "insert into deployment_config (deployment_type, namespace, created_at) values ('', 'newer', now()), ('x', 'older', '2020-01-01')")
	check("older")
}

// What an agent says about its page does not go into the row of another type's
// agent.
func TestMaintenanceLeavesTheOtherTypesRowAlone(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		target taskdb.Target
		row    string
		serves string // a release of this chart type
		want   string
	}{
		{compose, " Kubernetes", "Helm", "f"},
		{helm, "DOCKER", "compose", "f"},
		{compose, "docker", "helm", "t"},
		{helm, "x", "compose", "t"},
		{compose, "kubernetes", "compose", "t"},
		{helm, "docker", "helm", "t"},
	} {
		raw := testenv.Database(t)
		db := open(t, raw.ConnString)
		raw.SQL(t, "insert into deployment_config (deployment_type) values ('"+test.row+"')")
		raw.SQL(t, `insert into release_artifact (release_version, chart_type, artifact_data, sha256, is_current)
			values ('1.0.0', '`+test.serves+`', '\x00', 'x', true)`)
		if err := db.SetMaintenance(t.Context(), test.target, true); err != nil {
			t.Fatal(err)
		}
		if got := raw.SQL(t, "select maintenance_mode_enabled from deployment_config"); got != test.want {
			t.Errorf("%s agent, row %q, %s serves: the flag is %s", test.target.Deployment, test.row, test.serves, got)
		}
	}
}

func TestClaimNeedsAKnownTarget(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t).ConnString)
	if _, err := db.Claim(context.Background(), taskdb.Target{Deployment: "swarm"}, claiming); err == nil || !strings.Contains(err.Error(), "swarm") {
		t.Errorf("claim: %v", err)
	}
}
