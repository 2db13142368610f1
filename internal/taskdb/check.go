package taskdb

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// neededColumns are the columns the agent reads (r) or also writes (w), with the
// kind of type they must have, "" for any that can be read as text.
var neededColumns = []struct{ table, column, access, kind string }{
	{"agent_task", "id", "r", ""},
	{"agent_task", "type", "r", ""},
	{"agent_task", "status", "w", "status"},
	{"agent_task", "release_artifact_id", "r", ""},
	{"agent_task", "execute_after", "r", "time"},
	{"agent_task", "picked_up_at", "w", "time"},
	{"agent_task", "completed_at", "w", "time"},
	{"agent_task", "last_heartbeat", "w", "time"},
	{"agent_task", "result", "w", "json"},
	{"agent_task", "error_message", "w", ""},
	{"agent_task", "created_at", "r", "time"},
	{"agent_task", "updated_at", "w", "time"},
	{"release_artifact", "id", "r", ""},
	{"release_artifact", "release_version", "r", ""},
	{"release_artifact", "chart_type", "r", ""},
	{"release_artifact", "artifact_data", "r", "bytea"},
	{"release_artifact", "env_data", "r", ""},
	{"release_artifact", "values_data", "r", ""},
	{"release_artifact", "sha256", "r", ""},
	{"release_artifact", "is_current", "w", "boolean"},
	{"release_artifact", "is_previous", "w", "boolean"},
	{"release_artifact", "applied_at", "w", "time"},
	{"release_artifact", "created_at", "r", "time"},
	{"admin", "id", "r", ""},
	{"admin", "name", "r", ""},
	{"admin", "email", "r", ""},
	{"admin", "is_active", "r", "boolean"},
	{"admin", "created_at", "r", "time"},
	{"deployment_config", "id", "r", ""},
	{"deployment_config", "deployment_type", "r", ""},
	{"deployment_config", "namespace", "r", ""},
	{"deployment_config", "helm_release_name", "r", ""},
	{"deployment_config", "compose_project_name", "r", ""},
	{"deployment_config", "maintenance_mode_enabled", "w", "boolean"},
	{"deployment_config", "last_agent_poll", "w", "time"},
	{"deployment_config", "smtp_host", "r", ""},
	{"deployment_config", "smtp_port", "r", ""},
	{"deployment_config", "smtp_user", "r", ""},
	{"deployment_config", "smtp_password", "r", ""},
	{"deployment_config", "smtp_from", "r", ""},
	{"deployment_config", "created_at", "r", "time"},
	{"deployment_config", "updated_at", "w", "time"},
}

// tableNames returns the v4.2 tables, also those the agent never reads.
func tableNames() []string {
	return []string{"release_artifact", "agent_task", "admin", "server_env", "deployment_config"}
}

// SchemaError lists why the agent cannot work with a database, one sentence each.
type SchemaError struct {
	Problems []string
	kind     error // ErrReadOnly, ErrSchema or ErrPermission
}

func (e *SchemaError) Error() string {
	return "check the WrkTalk tables: " + strings.Join(e.Problems, "; ")
}

// Is makes a SchemaError an ErrReadOnly, an ErrSchema (something is missing or of
// the wrong kind) or an ErrPermission.
func (e *SchemaError) Is(target error) bool { return target == e.kind }

func (e *SchemaError) add(kind error, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	if slices.Contains(e.Problems, text) {
		return
	}
	e.Problems = append(e.Problems, text)
	// Of several, the one that says most: a privilege on a table that is not there
	// is not the trouble.
	if e.kind == nil || kind == ErrReadOnly || kind == ErrSchema && e.kind == ErrPermission {
		e.kind = kind
	}
}

// err returns e unless nothing was found.
func (e *SchemaError) err() error {
	if len(e.Problems) == 0 {
		return nil
	}
	return e
}

// CheckSchema finds out whether an agent can work with the database: that the server
// takes writes, that tables, columns, their types and values are there, that the
// user has the privileges and sees the rows, and in the end that the statements of a
// run pass, in a transaction that is rolled back. The error is a *SchemaError that
// lists everything in the way, with the statements that mend it. What triggers do
// only a run tells.
func (db *DB) CheckSchema(ctx context.Context, target Target) error {
	found := &SchemaError{}
	for _, check := range []func(context.Context, *SchemaError) error{
		db.checkWritable, db.checkColumns, db.checkStatuses, db.checkPolicies,
	} {
		if err := check(ctx, found); err != nil {
			return wrap("check the WrkTalk tables", err)
		}
	}
	if len(found.Problems) == 0 {
		if err := db.tryStatements(ctx, target, found); err != nil {
			return wrap("check the WrkTalk tables", err)
		}
	}
	return found.err()
}

// checkWritable finds out whether sessions of this user can write.
func (db *DB) checkWritable(ctx context.Context, found *SchemaError) error {
	var recovery, readOnly bool
	var source, database, user string
	err := db.row(ctx, []any{&recovery, &readOnly, &source, &database, &user}, `
		select pg_is_in_recovery(), current_setting('transaction_read_only')::boolean, s.source,
			quote_ident(current_database()), quote_ident(current_user)
		from pg_settings s where s.name = 'default_transaction_read_only' `)
	if err != nil {
		return err
	}
	mend := "alter system reset default_transaction_read_only; select pg_reload_conf()"
	switch source {
	case "database":
		mend = "alter database " + database + " reset default_transaction_read_only"
	case "user":
		mend = "alter role " + user + " reset default_transaction_read_only"
	case "database user":
		mend = "alter role " + user + " in database " + database + " reset default_transaction_read_only"
	case "client":
		mend = "take default_transaction_read_only out of db.url and PGOPTIONS"
	}
	switch {
	case recovery:
		found.add(ErrReadOnly, "the server is read-only, a standby: set db.host to the primary, or to all servers separated by commas, of which the one that takes writes is found")
	case readOnly:
		found.add(ErrReadOnly, "the server is read-only for this user, default_transaction_read_only is on: `%s`, unless the server set it because it is full or fails over", mend)
	}
	return nil
}

// columnTypes are the types of each kind of column that the agent's statements work
// with, and the one to change others into.
var columnTypes = map[string]struct {
	fit    []string
	change string
}{
	"time":    {[]string{"timestamp with time zone", "timestamp without time zone"}, "timestamptz"},
	"boolean": {[]string{"boolean"}, "boolean"},
	"bytea":   {[]string{"bytea"}, "bytea"},
	"json":    {[]string{"jsonb", "json", "text", "character varying"}, "jsonb"},
}

// checkColumns compares the tables with neededColumns.
func (db *DB) checkColumns(ctx context.Context, found *SchemaError) error {
	var tables, columns, access []string
	for _, n := range neededColumns {
		tables, columns, access = append(tables, n.table), append(columns, n.column), append(access, n.access)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select n.place::int, quote_ident(current_user), quote_ident(current_database()), c.oid is not null, a.attnum is not null,
			coalesce(has_column_privilege(c.oid, a.attnum, 'SELECT'), false),
			n.access = 'r' or coalesce(has_column_privilege(c.oid, a.attnum, 'UPDATE'), false),
			coalesce(format_type(coalesce(nullif(t.typbasetype, 0), a.atttypid), null), ''),
			coalesce((select string_agg(quote_ident(s.nspname), ', ' order by s.nspname) from pg_catalog.pg_class o
				join pg_catalog.pg_namespace s on s.oid = o.relnamespace
				where o.relname = n.tab and o.relkind in ('r', 'p', 'v', 'f') and s.nspname <> 'information_schema'
					and has_schema_privilege(s.oid, 'USAGE')), ''),
			coalesce((select string_agg(quote_ident(s.nspname), ', ' order by s.nspname) from pg_catalog.pg_class o
				join pg_catalog.pg_namespace s on s.oid = o.relnamespace
				where o.relname = n.tab and o.relkind in ('r', 'p', 'v', 'f')
					and not has_schema_privilege(s.oid, 'USAGE')), '')
		from unnest($1::text[], $2::text[], $3::text[]) with ordinality as n (tab, col, access, place)
		left join pg_catalog.pg_class c on c.oid = to_regclass(n.tab)
		left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = n.col and not a.attisdropped and a.attnum > 0
		left join pg_catalog.pg_type t on t.oid = a.atttypid
		order by n.place`, tables, columns, access)
	if err != nil {
		return err
	}
	defer rows.Close()
	denied := grants{}
	for rows.Next() {
		var place int
		var user, database, columnType, elsewhere, closed string
		var hasTable, hasColumn, reads, writes bool
		if err := rows.Scan(&place, &user, &database, &hasTable, &hasColumn, &reads, &writes, &columnType, &elsewhere, &closed); err != nil {
			return err
		}
		n := neededColumns[place-1]
		denied.user = user
		switch types, limited := columnTypes[n.kind]; {
		case !hasTable && elsewhere != "":
			found.add(ErrSchema, "table %s is in schema %s, which the search_path does not name: `alter role %s in database %s set search_path = %[2]s`, or add ?search_path=%[2]s to db.url",
				n.table, elsewhere, user, database)
		case !hasTable && closed != "":
			found.add(ErrPermission, "table %s is in schema %s, which this user may not use: `grant usage on schema %[2]s to %s`", n.table, closed, user)
		case !hasTable:
			found.add(ErrSchema, "table %s is missing: check db.name, or run `wrktalk-agent migrate --create` on an empty database", n.table)
		case !hasColumn:
			found.add(ErrSchema, "column %s of table %s is missing: the backend's version is not v4.2", n.column, n.table)
		case limited && !slices.Contains(types.fit, columnType):
			found.add(ErrSchema, "column %s of table %s is of type %s: `alter table %[2]s alter column %[1]s type %[4]s`", n.column, n.table, columnType, types.change)
		default:
			if !reads {
				denied.note("read", "select", n.table, n.column)
			}
			if !writes {
				denied.note("change", "update", n.table, n.column)
			}
		}
	}
	for _, text := range denied.sentences() {
		found.add(ErrPermission, "%s", text)
	}
	return rows.Err()
}

// grants collects the privileges that a user lacks.
type grants struct {
	user   string
	lacked []struct {
		verb, privilege, table string
		columns                []string
	}
}

func (g *grants) note(verb, privilege, table, column string) {
	for i := range g.lacked {
		if l := &g.lacked[i]; l.privilege == privilege && l.table == table {
			l.columns = append(l.columns, column)
			return
		}
	}
	g.lacked = append(g.lacked, struct {
		verb, privilege, table string
		columns                []string
	}{verb, privilege, table, []string{column}})
}

func (g *grants) sentences() (texts []string) {
	for _, l := range g.lacked {
		list, plural := strings.Join(l.columns, ", "), ""
		if len(l.columns) > 1 {
			plural = "s"
		}
		texts = append(texts, fmt.Sprintf("the database user may not %s column%s %s of table %s: `grant %s (%[3]s) on %[4]s to %[6]s`",
			l.verb, plural, list, l.table, l.privilege, g.user))
	}
	return texts
}

// checkStatuses makes sure that agent_task.status takes every value that the agent
// writes: an enum or a check may lack one, a column may be too narrow.
func (db *DB) checkStatuses(ctx context.Context, found *SchemaError) error {
	statuses := []string{string(task.StatusPending), string(task.StatusInProgress), string(task.StatusCompleted), string(task.StatusFailed)}
	var columnType, kind string
	var length int32
	var labels, checks, names []string
	err := db.row(ctx, []any{&columnType, &kind, &length, &labels, &checks, &names}, `
		select format_type(a.atttypid, a.atttypmod), t.typtype::text,
			case when a.atttypid in ('varchar'::regtype, 'bpchar'::regtype) then a.atttypmod - 4 else -1 end,
			array(select enumlabel::text from pg_catalog.pg_enum e where e.enumtypid = a.atttypid),
			array(select pg_get_expr(k.conbin, k.conrelid) from pg_catalog.pg_constraint k
				where k.conrelid = a.attrelid and k.contype = 'c' and k.conkey = array[a.attnum] order by k.conname),
			array(select quote_ident(k.conname) from pg_catalog.pg_constraint k
				where k.conrelid = a.attrelid and k.contype = 'c' and k.conkey = array[a.attnum] order by k.conname)
		from pg_catalog.pg_attribute a join pg_catalog.pg_type t on t.oid = a.atttypid
		where a.attrelid = to_regclass('agent_task') and a.attname = 'status' and not a.attisdropped`)
	if errors.Is(err, pgx.ErrNoRows) {
		return nil // checkColumns says so
	}
	if err != nil {
		return err
	}
	for _, status := range statuses {
		var refused *pgconn.PgError
		switch {
		case kind == "d" && errors.As(db.row(ctx, []any{new(string)}, `select $1::text::`+columnType+`::text`, status), &refused):
			found.add(ErrSchema, "agent_task.status is of the domain %s, which refuses %s: %s", columnType, status, refused.Message)
		case kind == "e" && !slices.Contains(labels, status):
			found.add(ErrSchema, "agent_task.status is of the enum %s, which lacks %s: `alter type %[1]s add value '%[2]s'`", columnType, status)
		case length > 0 && len(status) > int(length):
			found.add(ErrSchema, "agent_task.status is %s, too narrow for %s: `alter table agent_task alter column status type varchar(50)`", columnType, status)
		}
	}
	if len(found.Problems) > 0 {
		return nil
	}
	for i, expression := range checks {
		var refused []string
		err := db.row(ctx, []any{&refused}, `select coalesce(array_agg(s.status::text order by n), '{}') from (
				select v::`+columnType+` as status, n from unnest($1::text[]) with ordinality as v (v, n)) s
			where (`+expression+`) is false`, statuses)
		if err == nil && len(refused) > 0 {
			found.add(ErrSchema, "the constraint %s of agent_task refuses the status %s: `alter table agent_task drop constraint %[1]s`, or let it pass",
				names[i], strings.Join(refused, ", "))
		}
	}
	return nil
}

// checkPolicies looks for row level security that leaves the agent no row.
func (db *DB) checkPolicies(ctx context.Context, found *SchemaError) error {
	policies, err := db.policies(ctx)
	for _, p := range policies {
		if !p.any {
			found.add(ErrPermission, "%s", p.sentence("lets this user "+p.verb+" no row"))
		}
	}
	return err
}

// SchemaWarnings returns what an agent may stumble over in a database that passes
// CheckSchema, one sentence each.
func (db *DB) SchemaWarnings(ctx context.Context) ([]string, error) {
	policies, err := db.policies(ctx)
	if err != nil {
		return nil, wrap("check the row level security", err)
	}
	var warnings []string
	for _, p := range policies {
		if p.any && !p.all {
			warnings = append(warnings, p.sentence("may hide rows that this user has to "+p.verb))
		}
	}
	var inserts bool
	var user string
	err = db.row(ctx, []any{&inserts, &user}, `
		select bool_and(has_column_privilege('agent_task', c, 'INSERT')), quote_ident(current_user)
		from unnest(array['id', 'type', 'status', 'release_artifact_id', 'execute_after', 'picked_up_at', 'created_at', 'updated_at']) as c`)
	if err != nil {
		return nil, wrap("check who may add tasks", err)
	}
	if !inserts {
		warnings = append(warnings, fmt.Sprintf("this user may not add tasks, so that a rollback --offline could not be recorded, nor deploy and rollback be asked for: `grant insert on agent_task to %s`", user))
	}
	return warnings, nil
}

// policy is what row level security lets this user do with a table.
type policy struct {
	table, verb, user string
	any, all          bool // some rows may pass; all do
}

func (p policy) sentence(what string) string {
	return fmt.Sprintf("row level security of table %s %s: `create policy wrktalk_agent on %[1]s to %[3]s using (true) with check (true)`, or `alter role %[3]s bypassrls`",
		p.table, what, p.user)
}

// policies returns the tables whose row level security holds for this user.
func (db *DB) policies(ctx context.Context) ([]policy, error) {
	return list(ctx, db, func(row pgx.CollectableRow) (p policy, err error) {
		err = row.Scan(&p.table, &p.verb, &p.user, &p.any, &p.all)
		return p, err
	}, `
		select n.tab, n.verb, quote_ident(current_user),
			coalesce(bool_or(p.polpermissive), false),
			coalesce(bool_or(p.polpermissive and p.passes) and bool_and(p.polpermissive or p.passes), false)
		from (values ('agent_task', 'see', 'r'), ('agent_task', 'change', 'w'), ('release_artifact', 'see', 'r'),
			('release_artifact', 'change', 'w'), ('admin', 'see', 'r'), ('deployment_config', 'see', 'r'),
			('deployment_config', 'change', 'w')) as n (tab, verb, cmd)
		join pg_catalog.pg_class c on c.oid = to_regclass(n.tab) and c.relkind in ('r', 'p')
		left join lateral (
			select polpermissive, coalesce(pg_get_expr(polqual, polrelid), 'true') = 'true'
				and (n.cmd = 'r' or coalesce(pg_get_expr(polwithcheck, polrelid), 'true') = 'true') as passes
			from pg_catalog.pg_policy
			where polrelid = c.oid and polcmd in ('*', n.cmd::"char")
				and (0 = any(polroles) or exists (select 1 from unnest(polroles) as r (oid) where pg_has_role(r.oid, 'USAGE')))
		) p on true
		where row_security_active(c.oid)
		group by 1, 2, 3 order by 1, 2`)
}

// triedWrites are the writes of a run, with the types and values that it writes, on
// no row.
var triedWrites = []string{
	`select id from agent_task where false for update skip locked`,
	`update agent_task set status = 'inProgress', picked_up_at = clock_timestamp(), last_heartbeat = clock_timestamp(),
		updated_at = clock_timestamp() where false`,
	`update agent_task set status = 'completed', completed_at = now(), last_heartbeat = now(), updated_at = now(),
		result = '{}', error_message = '' where false`,
	`update agent_task set status = 'failed' where false`,
	`select id from release_artifact where false for update`,
	`update release_artifact set is_current = true, is_previous = false, applied_at = now() where false`,
	`select id from deployment_config where false for update skip locked`,
	`update deployment_config set last_agent_poll = clock_timestamp(), maintenance_mode_enabled = false,
		updated_at = clock_timestamp() where false`,
}

// tryStatements runs what a run runs, in a transaction that is rolled back.
func (db *DB) tryStatements(ctx context.Context, target Target, found *SchemaError) error {
	errTried := errors.New("everything was tried")
	err := db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		for _, sql := range triedWrites {
			if _, err := tx.Exec(ctx, sql); err != nil {
				return err
			}
		}
		if _, err := db.candidates(ctx, tx, target, 0); err != nil {
			return err
		}
		return errTried
	})
	for _, read := range []func() error{
		func() error { _, err := db.MailSettings(ctx, target); return err },
		func() error { _, err := db.ActiveAdmins(ctx); return err },
		func() error { _, err := db.RollbackTarget(ctx, target.Chart()); return err },
		func() error { _, err := db.Status(ctx, target); return err },
	} {
		if errors.Is(err, errTried) || isNotFound(err) || err == nil {
			err = read()
		}
	}
	var refused *pgconn.PgError
	switch {
	case err == nil, isNotFound(err), errors.Is(err, errTried):
		return nil
	case errors.As(err, &refused) && !Transient(err):
		kind := ErrSchema
		if refused.Code == "42501" {
			kind = ErrPermission
		}
		found.add(kind, "what a run does is refused: %s", wrap("try it in a transaction that is rolled back", err))
		return nil
	}
	return err
}
