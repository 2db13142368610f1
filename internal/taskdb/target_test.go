package taskdb_test

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestMailSettings(t *testing.T) {
	t.Parallel()
	const own = "insert into deployment_config (deployment_type, smtp_host, smtp_port, smtp_user, smtp_password, smtp_from) values "
	full := taskdb.MailSettings{Host: "mail.example", Port: 587, User: "u", Password: "p w ", From: "a@b"}
	for name, test := range map[string]struct {
		rows string
		want taskdb.MailSettings
	}{
		"no row":         {"select", taskdb.MailSettings{}},
		"all null":       {own + "('kubernetes', null, null, null, null, null)", taskdb.MailSettings{}},
		"own row":        {own + "('kubernetes', ' mail.example ', 587, 'u', 'p w ', 'a@b'), ('docker', 'other', 1, 'o', 'o', 'o')", full},
		"own has none":   {own + "('kubernetes', ' ', 25, 'x', 'x', 'x'), ('docker', 'mail.example', 587, 'u', 'p w ', 'a@b')", full},
		"only the other": {own + "('docker', 'mail.example', 587, 'u', 'p w ', 'a@b')", full},
	} {
		t.Run(name, func(t *testing.T) {
			raw := testenv.Database(t)
			raw.SQL(t, test.rows)
			if got, err := open(t, raw.ConnString).MailSettings(t.Context(), helm); err != nil || got != test.want {
				t.Errorf("settings are %+v, %v", got, err)
			}
		})
	}
}

func TestActiveAdmins(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		for i, admin := range []string{
			"'Zoe', ' zoe@example.com ', true, '2020-01-01'", "'', 'Ann@Example.com', true, '2020-01-01'",
			"'Later', 'ann@example.com', true, '2021-01-01'", "null, 'bob@example.com', true, null",
			"'Off', 'off@example.com', false, null", "'Unset', 'unset@example.com', null, null", "'Blank', ' ', true, null",
		} {
			raw.SQL(t, "insert into admin (id, name, email, is_active, created_at) values ("+freshID("admin", i)+", "+admin+")")
		}
		got, err := db.ActiveAdmins(t.Context())
		want := []taskdb.Admin{{"", "Ann@Example.com"}, {"", "bob@example.com"}, {"Zoe", "zoe@example.com"}}
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("admins are %+v, %v", got, err)
		}
	})
}

func TestTasksAndStatus(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		ctx := t.Context()
		empty, err := db.Status(ctx, helm)
		if err != nil || empty.Current != nil || empty.Pending != 0 || empty.NextDue != nil || empty.LastPoll != nil {
			t.Errorf("status of nothing: %+v, %v", empty, err)
		}
		a := pushArtifact(t, db, task.ChartHelm, "1.0")
		b := pushArtifact(t, db, task.ChartHelm, "2.0")
		var ended []task.ID
		for i, artifact := range []string{a, b, b} {
			addTask(t, db, task.KindDeploy, artifact)
			got := mustClaim(t, db, helm)
			finish(t, db, got, artifact, i < 2)
			ended = append(ended, got.ID)
		}
		addTask(t, db, task.KindDeploy, b)
		running := mustClaim(t, db, helm)
		at := time.Now().Add(2 * time.Hour)
		waiting, err := db.AddTask(ctx, taskdb.NewTask{Kind: task.KindDeploy, ArtifactID: &b, At: &at})
		if err != nil {
			t.Fatal(err)
		}
		raw.SQL(t, insertTask("deploy", "pending", "'infinity'"))
		addTask(t, db, task.KindDeploy, pushArtifact(t, db, task.ChartCompose, "1.0"))

		s, err := db.Status(ctx, helm)
		if err != nil {
			t.Fatal(err)
		}
		if s.Current == nil || s.Current.ID != b || s.Previous == nil || s.Previous.ID != a || s.Pending != 2 ||
			s.NextDue == nil || *s.NextDue < time.Hour || *s.NextDue > 2*time.Hour+time.Second {
			t.Errorf("status: %+v", s)
		}
		// A third waits for ever, and the fourth is not this target's.
		if got := ids(s.Queue); len(got) != 2 || got[0] != waiting || s.OtherPending != 1 || s.OtherDue != 1 {
			t.Errorf("queue: %v, %d of them due of %d for others", got, s.OtherDue, s.OtherPending)
		}
		if len(s.InProgress) != 1 || s.InProgress[0].ID != running.ID || s.InProgress[0].HeartbeatAge == nil {
			t.Errorf("in progress: %+v", s.InProgress)
		}
		slices.Reverse(ended)
		if got := ids(s.Recent); !slices.Equal(got, ended) {
			t.Errorf("recent: %v, not %v", got, ended)
		}

		row, err := db.Task(ctx, waiting)
		if err != nil || row.DueIn < time.Hour || row.ExecuteAfter.Sub(at).Abs() > time.Millisecond || row.ReleaseVersion != "2.0" || row.HeartbeatAge != nil {
			t.Errorf("the waiting task: %+v, %v", row, err)
		}
		for filter, want := range map[string]int{
			"all": 7, "failed": 1, "compose": 1, "prefix": 1, "two": 2,
		} {
			f := map[string]taskdb.TaskFilter{
				"all": {}, "failed": {Statuses: []task.Status{task.StatusFailed}}, "compose": {Chart: task.ChartCompose},
				"prefix": {IDPrefix: string(waiting)[:min(30, len(waiting))]}, "two": {Limit: 2},
			}[filter]
			if list, err := db.Tasks(ctx, f); err != nil || len(list) != want {
				t.Errorf("filter %s lists %d tasks, not %d: %v", filter, len(list), want, err)
			}
		}
		if _, err := db.Task(ctx, "nonsense"); !errors.Is(err, taskdb.ErrNotFound) {
			t.Errorf("no such task: %v", err)
		}
		if _, err := db.AddTask(ctx, taskdb.NewTask{Kind: task.KindDeploy, ArtifactID: new(fmt.Sprint(waiting))}); err == nil {
			t.Error("a task of an artifact that is not there was added")
		}
	})
}

func TestWhoseTaskItIs(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		ctx := t.Context()
		if types, err := db.DeploymentTypes(ctx); err != nil || len(types) != 0 {
			t.Errorf("deployment types of nothing: %q, %v", types, err)
		}
		raw.SQL(t, "insert into deployment_config (id, deployment_type) select "+freshID("deployment_config", 1)+", 'kubernetes'")
		if types, err := db.DeploymentTypes(ctx); err != nil || !slices.Equal(types, []string{"kubernetes"}) {
			t.Errorf("deployment types: %q, %v", types, err)
		}
		deploy := addTask(t, db, task.KindDeploy, pushArtifact(t, db, task.ChartCompose, "1.0"))
		rollback, err := db.AddTask(ctx, taskdb.NewTask{Kind: task.KindRollback})
		if err != nil {
			t.Fatal(err)
		}
		for id, want := range map[task.ID]task.ChartType{deploy: task.ChartCompose, rollback: task.ChartHelm, "nonsense": ""} {
			if got, err := db.WaitsFor(ctx, id); err != nil || got != want {
				t.Errorf("task %s waits for %q, want %q: %v", id, got, want, err)
			}
		}
	})
}

func ids(rows []taskdb.TaskRow) []task.ID {
	var list []task.ID
	for _, r := range rows {
		list = append(list, r.ID)
	}
	return list
}

func TestMailSettingsHideThePassword(t *testing.T) {
	const password = "pa55 w0rd=ü"
	s := taskdb.MailSettings{Host: "h", User: "u", Password: password}
	for _, shown := range []string{fmt.Sprint(s), fmt.Sprintf("%+v %#v %s", s, s, s), fmt.Sprintf("%v", &s)} {
		if strings.Contains(shown, password) {
			t.Errorf("%s shows the password", shown)
		}
	}
}
