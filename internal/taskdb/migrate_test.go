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
			db.RecordMail(ctx, taskdb.Mail{TaskID: "a", Recipient: "x@y", MessageID: "<1>", State: "queued"}),
			db.RecordMail(ctx, taskdb.Mail{TaskID: "a", Recipient: "x@y", MessageID: "<1>", State: "sent", Attempts: 2}),
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
	if err := db.CheckSchema(t.Context()); err != nil {
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
	for name, test := range map[string]struct {
		change string
		want   []string
		is     error
	}{
		"table":     {"drop table admin", []string{"table admin is missing"}, taskdb.ErrSchema},
		"column":    {"alter table agent_task drop column picked_up_at", []string{"column picked_up_at of table agent_task"}, taskdb.ErrSchema},
		"elsewhere": {"create schema w; alter table admin set schema w", []string{"table admin is in schema w"}, taskdb.ErrSchema},
	} {
		t.Run(name, func(t *testing.T) {
			raw := testenv.Database(t)
			raw.SQL(t, test.change)
			err := open(t, raw.ConnString).CheckSchema(t.Context())
			checkProblems(t, err, test.want, test.is)
		})
	}
	t.Run("privileges", func(t *testing.T) {
		raw := testenv.Database(t)
		const enough = `grant select, update on agent_task, release_artifact, deployment_config to ROLE;
			grant select (id, name, email, is_active, created_at) on admin to ROLE;`
		conn := limited(t, raw, enough)
		db := open(t, conn)
		if err := db.CheckSchema(t.Context()); err != nil {
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
		checkProblems(t, db.CheckSchema(t.Context()), []string{
			"may not change column status of table agent_task", "may not read column email of table admin",
		}, taskdb.ErrPermission)
		_, err := db.Claim(t.Context(), helm, claiming)
		if err == nil {
			addTask(t, owner, task.KindDeploy, artifact)
			_, err = db.Claim(t.Context(), helm, claiming)
		}
		if !errors.Is(err, taskdb.ErrPermission) || taskdb.Explain(err) == "" || taskdb.Transient(err) {
			t.Errorf("claim without the privilege: %v", err)
		}
		// Another's schema that cannot be used is as good as none.
		if err := owner.Migrate(t.Context()); err != nil {
			t.Fatal(err)
		}
		if v, err := db.Migrated(t.Context()); v != 0 || err != nil {
			t.Errorf("version %d, %v", v, err)
		}
	})
}

func checkProblems(t *testing.T, err error, want []string, is error) {
	t.Helper()
	var schema *taskdb.SchemaError
	if !errors.As(err, &schema) || !errors.Is(err, is) || taskdb.Explain(err) == "" {
		t.Fatalf("check: %v", err)
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q does not say %q", err, w)
		}
	}
}

func TestMissingTablesAreExplained(t *testing.T) {
	db := open(t, testenv.Database(t, testenv.EmptySchema).ConnString)
	_, err := db.Claim(t.Context(), helm, claiming)
	if !errors.Is(err, taskdb.ErrSchema) || !strings.Contains(taskdb.Explain(err), "migrate --create") {
		t.Errorf("claim: %v; %s", err, taskdb.Explain(err))
	}
	checkSafe(t, err)
}
