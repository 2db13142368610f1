package taskdb_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// describe lists columns, defaults, constraints, indexes and triggers of the
// backend's tables, in no particular order of creation.
const describe = `
	select 'column', c.relname, a.attname, a.attnum, format_type(a.atttypid, a.atttypmod), a.attnotnull, pg_get_expr(d.adbin, d.adrelid)
		from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 left join pg_attrdef d on d.adrelid = c.oid and d.adnum = a.attnum
		where c.relnamespace = 'public'::regnamespace and c.relkind = 'r' order by 2, 4;
	select conrelid::regclass, conname, pg_get_constraintdef(oid) from pg_constraint where connamespace = 'public'::regnamespace order by 1, 2;
	select indexdef from pg_indexes where schemaname = 'public' order by 1;
	select tgrelid::regclass, tgname from pg_trigger where not tgisinternal order by 1, 2;
	select nspname from pg_namespace where nspname not like 'pg\_%' order by 1;
	select proname from pg_proc where pronamespace = 'public'::regnamespace order by 1`

func TestMigrateUpDownUp(t *testing.T) {
	t.Parallel()
	eachSchema(t, func(t *testing.T, raw *testenv.DB, db *taskdb.DB) {
		ctx := t.Context()
		before := raw.SQL(t, describe)
		step := func(what string, f func(context.Context) error, version int) {
			t.Helper()
			if err := f(ctx); err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			if v, err := db.Migrated(ctx); err != nil || v != version {
				t.Fatalf("after %s: version %d, %v", what, v, err)
			}
		}
		step("nothing", func(context.Context) error { return nil }, 0)
		step("down without up", db.Down, 0)
		step("up", db.Migrate, taskdb.SchemaVersion)
		added := raw.SQL(t, describe)
		step("up again", db.Migrate, taskdb.SchemaVersion)
		if again := raw.SQL(t, describe); again != added {
			t.Errorf("a repetition changed\n%s\ninto\n%s", added, again)
		}
		// Nothing but a trigger and a schema is new to the backend.
		var extra []string
		for line := range strings.Lines(added) {
			if !strings.Contains(before, strings.TrimSpace(line)) {
				extra = append(extra, strings.TrimSpace(line))
			}
		}
		if got := strings.Join(extra, ", "); got != "agent_task|wrktalk_agent_notify, wrktalk_agent" {
			t.Errorf("added: %s", got)
		}
		step("down", db.Down, 0)
		if after := raw.SQL(t, describe); after != before {
			t.Errorf("down left\n%s\nnot\n%s", after, before)
		}
		step("up after down", db.Migrate, taskdb.SchemaVersion)
	})
}

func TestRecordsNeedNoMigration(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	ctx := t.Context()
	record := func() error {
		return errors.Join(
			db.RecordAttempt(ctx, taskdb.Attempt{TaskID: "a", Token: "t", Owner: "host"}),
			db.RecordAttempt(ctx, taskdb.Attempt{TaskID: "a", Token: "t", Ended: true, Note: "completed \x00"}),
			db.AppendEvents(ctx, "a", "t", []task.Event{
				{Time: time.Unix(1, 1000), Component: "fetcher", Phase: task.PhaseClaimed},
				{Time: time.Unix(1, 1000), Component: "fetcher", Phase: task.PhaseStaging, Text: "ü\x00\xff"},
			}),
			db.RecordDelivery(ctx, taskdb.Delivery{TaskID: "a", Recipient: "x@y", MessageID: "<1>", State: "queued"}),
			db.RecordDelivery(ctx, taskdb.Delivery{TaskID: "a", Recipient: "x@y", MessageID: "<1>", State: "sent", Attempts: 2}),
		)
	}
	if err := record(); err != nil {
		t.Fatalf("without the schema: %v", err)
	}
	if err := db.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 { // a repetition adds nothing
		if err := record(); err != nil {
			t.Fatal(err)
		}
	}
	got := raw.SQL(t, `select owner, ended is not null, note from wrktalk_agent.attempt;
		select component, phase, text from wrktalk_agent.event order by seq;
		select recipient, state, attempts from wrktalk_agent.outbox`)
	want := "host|t|completed \uFFFD\nfetcher|claimed|\nfetcher|staging|ü\uFFFD\uFFFD\nx@y|sent|2"
	if got != want {
		t.Errorf("recorded\n%s\nnot\n%s", got, want)
	}
	events, err := db.Events(ctx, "a", 0)
	if err != nil || len(events) != 2 || events[0].Phase != task.PhaseClaimed || !events[0].Time.Equal(time.Unix(1, 1000)) {
		t.Fatalf("events: %+v, %v", events, err)
	}
	if rest, err := db.Events(ctx, "a", events[0].Seq); err != nil || len(rest) != 1 || rest[0].Text != "ü\uFFFD\uFFFD" {
		t.Errorf("later events: %+v, %v", rest, err)
	}
	// A claim records itself.
	addTask(t, db, task.KindRollback, "")
	claim(t, db, helm, taskdb.ClaimOptions{Lease: time.Hour, Claim: true, Owner: "this host"})
	if n := raw.SQL(t, "select count(*) from wrktalk_agent.attempt a join agent_task t on t.id::text = a.task where owner = 'this host'"); n != "1" {
		t.Errorf("%s attempts were recorded", n)
	}
}

func TestMigrateGivesUpOnALockedTable(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	release := lockRow(t, raw.ConnString, addTask(t, db, task.KindRollback, ""))
	defer release()
	err := db.Migrate(t.Context())
	if err == nil || !taskdb.Transient(err) {
		t.Errorf("migrate while the table is locked: %v", err)
	}
	if v, err := db.Migrated(t.Context()); v != 0 || err != nil {
		t.Errorf("version %d, %v", v, err)
	}
}

func TestCreateSchemaMatchesTheReference(t *testing.T) {
	t.Parallel()
	reference, created := testenv.Database(t), testenv.Database(t, testenv.EmptySchema)
	db := open(t, created.ConnString)
	if err := db.CreateSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got, want := created.SQL(t, describe), reference.SQL(t, describe); got != want {
		t.Errorf("created\n%s\nnot\n%s", got, want)
	}
	if err := db.CreateSchema(t.Context()); !errors.Is(err, taskdb.ErrSchemaExists) {
		t.Errorf("created again: %v", err)
	}
	if err := db.CheckSchema(t.Context(), helm); err != nil {
		t.Error(err)
	}
}

// limited adds a role that may log in, and returns its connection string.
func limited(t *testing.T, raw *testenv.DB, grants string) string {
	t.Helper()
	role := "role_of_" + raw.Name
	raw.SQL(t, "create role "+role+" login;"+strings.ReplaceAll(grants, "ROLE", role))
	t.Cleanup(func() { raw.SQL(t, "drop owned by "+role+"; drop role "+role) })
	return strings.Replace(raw.ConnString, "postgres://postgres@", "postgres://"+role+"@", 1)
}

func TestCreateSchemaWithoutTheExtension(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t, testenv.EmptySchema)
	// Without CREATE on the database no extension can be added.
	db := open(t, limited(t, raw, "grant create on schema public to ROLE; revoke create, temporary on database "+raw.Name+" from public"))
	if err := db.CreateSchema(t.Context()); err != nil {
		t.Fatal(err)
	}
	pushArtifact(t, db, task.ChartHelm, "1")
	def := raw.SQL(t, "select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'admin'::regclass and adnum = 1")
	if def != "gen_random_uuid()" {
		t.Errorf("ids default to %s", def)
	}
}

func TestCheckSchemaNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		schema testenv.Schema
		change string // DB and ROLE stand for the database and the role that checks, which has all grants
		want   string
		is     error
	}{
		"nothing":        {0, "", "", nil},
		"table":          {0, "drop table admin", "table admin is missing", taskdb.ErrSchema},
		"column":         {0, "alter table agent_task drop column picked_up_at", "column picked_up_at of table agent_task", taskdb.ErrSchema},
		"elsewhere":      {0, "create schema w; alter table admin set schema w; grant usage on schema w to ROLE", "`alter role ROLE in database DB set search_path = w`", taskdb.ErrSchema},
		"closed":         {0, "create schema w; alter table admin set schema w; alter role ROLE set search_path = w, public", "`grant usage on schema w to ROLE`", taskdb.ErrPermission},
		"read-only":      {0, "alter database DB set default_transaction_read_only = on", "`alter database DB reset default_transaction_read_only`", taskdb.ErrReadOnly},
		"read-only role": {0, "alter role ROLE set default_transaction_read_only = on", "`alter role ROLE reset default_transaction_read_only`", taskdb.ErrReadOnly},
		"enum": {
			testenv.NativeEnums, "alter type task_status rename value 'inProgress' to 'in_progress'",
			"`alter type task_status add value 'inProgress'`", taskdb.ErrSchema,
		},
		"constraint": {
			0, "alter table agent_task add constraint known check (status in ('pending', 'completed', 'failed', 'running'))",
			"the constraint known of agent_task refuses the status inProgress", taskdb.ErrSchema,
		},
		"constraint that fits": {0, "alter table agent_task add check (status in ('pending', 'inProgress', 'completed', 'failed'))", "", nil},
		"narrow":               {0, "alter table agent_task alter column status type varchar(9)", "too narrow for inProgress", taskdb.ErrSchema},
		"domain": {
			0, "create domain st as varchar check (value <> 'inProgress'); alter table agent_task alter column status type st",
			"refuses inProgress", taskdb.ErrSchema,
		},
		"type":   {0, "alter table agent_task alter column picked_up_at type date", "`alter table agent_task alter column picked_up_at type timestamptz`", taskdb.ErrSchema},
		"hidden": {0, "alter table agent_task enable row level security", "lets this user see no row: `create policy wrktalk_agent on agent_task to ROLE", taskdb.ErrPermission},
		"hidden from others": {
			0, "alter table release_artifact enable row level security; create policy p on release_artifact for select using (true)",
			"of table release_artifact lets this user change no row", taskdb.ErrPermission,
		},
		"policy":  {0, "alter table agent_task enable row level security; create policy p on agent_task using (true)", "", nil},
		"filters": {0, "alter table agent_task enable row level security; create policy p on agent_task using (type = 'deploy')", "warning: row level security of table agent_task may hide rows that this user has to see", nil},
		"inserts": {0, "revoke insert on agent_task from ROLE", "warning: this user may not add tasks", nil},
		"statement": {0, `alter table deployment_config rename to c; create view deployment_config as select * from c limit 1;
			grant select, update on deployment_config to ROLE`, "what a run does is refused", taskdb.ErrSchema},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			raw := testenv.Database(t, test.schema)
			conn := limited(t, raw, "grant select, insert, update on all tables in schema public to ROLE")
			names := strings.NewReplacer("DB", raw.Name, "ROLE", "role_of_"+raw.Name)
			raw.SQL(t, names.Replace(test.change))
			db := open(t, conn)
			err := db.CheckSchema(t.Context(), helm)
			if test.is != nil {
				checkProblems(t, err, []string{names.Replace(test.want)}, test.is)
				return
			}
			warnings, warnErr := db.SchemaWarnings(t.Context())
			if err != nil || warnErr != nil {
				t.Fatalf("check: %v, %v", err, warnErr)
			}
			if want, expected := strings.CutPrefix(test.want, "warning: "); expected != (len(warnings) > 0) || !strings.Contains(strings.Join(warnings, "\n"), want) {
				t.Errorf("warnings %q, want %q", warnings, want)
			}
		})
	}
	t.Run("standby", func(t *testing.T) {
		t.Parallel()
		p, err := testenv.StartPostgres(testenv.PostgresOptions{Standby: true})
		if errors.Is(err, testenv.ErrNoPostgres) {
			testenv.Missing(t, "PostgreSQL", err)
		}
		if err != nil {
			t.Fatal(err)
		}
		defer p.Stop()
		checkProblems(t, open(t, p.URL("postgres")).CheckSchema(t.Context(), helm), []string{"a standby: set db.host to the primary"}, taskdb.ErrReadOnly)
	})
	t.Run("privileges", func(t *testing.T) {
		raw := testenv.Database(t)
		const enough = `grant select, update on agent_task, release_artifact, deployment_config to ROLE;
			grant select (id, name, email, is_active, created_at) on admin to ROLE;`
		conn := limited(t, raw, enough)
		db := open(t, conn)
		if err := db.CheckSchema(t.Context(), helm); err != nil {
			t.Errorf("with enough privileges: %v", err)
		}
		// They really are enough.
		raw.SQL(t, "insert into deployment_config (deployment_type) values ('kubernetes'); insert into admin (email, password) values ('a@b', 'secret')")
		owner := open(t, raw.ConnString)
		artifact := pushArtifact(t, owner, task.ChartHelm, "1")
		addTask(t, owner, task.KindDeploy, artifact)
		finish(t, db, mustClaim(t, db, helm), artifact, true)
		if admins, err := db.ActiveAdmins(t.Context()); err != nil || len(admins) != 1 {
			t.Errorf("admins: %v, %v", admins, err)
		}
		role := "role_of_" + raw.Name
		raw.SQL(t, fmt.Sprintf("revoke update on agent_task from %s; revoke select (email) on admin from %[1]s", role))
		checkProblems(t, db.CheckSchema(t.Context(), helm), []string{
			"may not change columns status, picked_up_at, completed_at, last_heartbeat, result, error_message, updated_at of table agent_task: `grant update (status, picked_up_at, completed_at, last_heartbeat, result, error_message, updated_at) on agent_task to " + role + "`",
			"may not read column email of table admin: `grant select (email) on admin to " + role + "`",
		}, taskdb.ErrPermission)
		_, err := db.Claim(t.Context(), helm, claiming)
		if err == nil {
			addTask(t, owner, task.KindDeploy, artifact)
			_, err = db.Claim(t.Context(), helm, claiming)
		}
		if !errors.Is(err, taskdb.ErrPermission) || taskdb.Explain(err) == "" || taskdb.Transient(err) {
			t.Errorf("claim without the privilege: %v", err)
		}
		raw.SQL(t, "grant update on agent_task to "+role)
		if err := db.Migrate(t.Context()); !errors.Is(err, taskdb.ErrPermission) || !strings.Contains(taskdb.Explain(err), "run it as postgres, who owns table agent_task") {
			t.Errorf("migrate without the privilege: %v: %s", err, taskdb.Explain(err))
		}
		// Whoever migrates gives the agent's role what it needs.
		granted, err := owner.MigrateFor(t.Context())
		if err != nil || len(granted) != 1 || granted[0] != role {
			t.Fatalf("migrated for %q: %v", granted, err)
		}
		if s, err := db.AgentSchema(t.Context()); s.Version != taskdb.SchemaVersion || s.Grants != "" || err != nil {
			t.Errorf("the schema after the migration: %+v, %v", s, err)
		}
		if err := errors.Join(
			db.RecordAttempt(t.Context(), taskdb.Attempt{TaskID: "a", Token: "t", Owner: "host"}),
			db.AppendEvents(t.Context(), "a", "t", []task.Event{{Time: time.Unix(1, 0), Component: "fetcher"}}),
			db.RecordDelivery(t.Context(), taskdb.Delivery{TaskID: "a", MessageID: "<1>"}),
			db.RequestCancel(t.Context(), "a", "t", ""),
		); err != nil {
			t.Errorf("with what the migration grants: %v", err)
		}
		if _, err := db.Prune(t.Context(), time.Hour); err != nil {
			t.Error(err)
		}
		// Without it, the schema is as good as none, and that is said.
		raw.SQL(t, "revoke all on schema wrktalk_agent from "+role)
		s, err := db.AgentSchema(t.Context())
		if err != nil || s.Version != 0 || !strings.Contains(s.Grants, "grant usage on schema wrktalk_agent to "+role) {
			t.Errorf("a schema that may not be used: %+v, %v", s, err)
		}
		err = db.Listen(t.Context(), func() { t.Error("a hint") })
		if !errors.Is(err, taskdb.ErrNotMigrated) || !strings.Contains(err.Error(), s.Grants) {
			t.Errorf("listen without the privilege: %v", err)
		}
	})
}

func checkProblems(t *testing.T, err error, want []string, is error) {
	t.Helper()
	var schema *taskdb.SchemaError
	if !errors.As(err, &schema) || !errors.Is(err, is) || taskdb.Transient(err) {
		t.Fatalf("check: %v", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestMissingTablesAreExplained(t *testing.T) {
	t.Parallel()
	db := open(t, testenv.Database(t, testenv.EmptySchema).ConnString)
	_, err := db.Claim(t.Context(), helm, claiming)
	if !errors.Is(err, taskdb.ErrSchema) || !strings.Contains(taskdb.Explain(err), "migrate --create") {
		t.Errorf("claim: %v; %s", err, taskdb.Explain(err))
	}
	checkSafe(t, err)
}
