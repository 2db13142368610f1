package taskdb

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

//go:embed sql/create_v42.sql
var createV42 string

//go:embed sql/migrate_1.sql
var migrate1 string

//go:embed sql/down.sql
var migrateDown string

// SchemaVersion is the version of the agent's own schema that this program
// brings.
const SchemaVersion = 1

// ErrSchemaExists means that a database is not empty.
var ErrSchemaExists = errors.New("tables of WrkTalk exist already")

// CreateSchema creates the v4.2 tables in a database that has none of them.
// It works without a superuser: where uuid-ossp cannot be had, ids default to
// gen_random_uuid().
func (db *DB) CreateSchema(ctx context.Context) error {
	return wrap("create the WrkTalk tables", db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		var there string
		err := tx.QueryRow(ctx, `select coalesce(string_agg(name, ', ' order by name), '')
			from unnest($1::text[]) as name where to_regclass(name) is not null`, tableNames()).Scan(&there)
		if err != nil {
			return err
		}
		if there != "" {
			return fmt.Errorf("%w: %s", ErrSchemaExists, there)
		}
		uuid, err := uuidFunction(ctx, tx)
		if err != nil {
			return err
		}
		return runScript(ctx, tx, strings.ReplaceAll(createV42, "uuid_generate_v4()", uuid))
	}))
}

// uuidFunction returns what makes ids: the reference's function where its
// extension can be had, PostgreSQL's own otherwise.
func uuidFunction(ctx context.Context, tx pgx.Tx) (string, error) {
	inner, err := tx.Begin(ctx) // a savepoint: the attempt may fail
	if err != nil {
		return "", err
	}
	if _, err = inner.Exec(ctx, `create extension if not exists "uuid-ossp"`); err == nil {
		err = inner.Commit(ctx)
	}
	if err != nil {
		if err := inner.Rollback(ctx); err != nil && !errors.Is(err, pgx.ErrTxClosed) {
			return "", err
		}
	}
	var there bool
	err = tx.QueryRow(ctx, `select to_regprocedure('uuid_generate_v4()') is not null`).Scan(&there)
	if err != nil || !there {
		return "gen_random_uuid()", err
	}
	return "uuid_generate_v4()", nil
}

// Migrate is MigrateFor the roles that the database names.
func (db *DB) Migrate(ctx context.Context) error {
	_, err := db.MigrateFor(ctx)
	return err
}

// MigrateFor adds the agent's own schema, wrktalk_agent, and a trigger on
// agent_task that announces work. It adds no column, no constraint and no
// value to the backend's tables, may be repeated, and is undone by Down. It
// gives up when it cannot lock agent_task within some seconds.
//
// The roles get what an agent needs of that schema; so does every role that may
// change agent_task.status, of which the agent's is one. It returns their names.
func (db *DB) MigrateFor(ctx context.Context, roles ...string) (granted []string, err error) {
	err = db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		if err := runScript(ctx, tx, migrate1); err != nil {
			return err
		}
		if granted, err = schemaUsers(ctx, tx, roles); err != nil {
			return err
		}
		for _, role := range granted {
			if err := runScript(ctx, tx, schemaGrants(role)); err != nil {
				return err
			}
		}
		return nil
	})
	return granted, wrap("add the agent's schema", db.whoMayMigrate(ctx, err))
}

// schemaGrants returns the statements that give a role, quoted, what an agent does
// in its own schema.
func schemaGrants(role string) string {
	return "grant usage on schema wrktalk_agent to " + role +
		"; grant select, insert, update, delete on all tables in schema wrktalk_agent to " + role
}

// schemaUsers returns the given roles, and those that may change agent_task.status,
// quoted.
func schemaUsers(ctx context.Context, tx pgx.Tx, roles []string) (users []string, err error) {
	err = tx.QueryRow(ctx, `
		select coalesce(array_agg(distinct name order by name), '{}') from (
			select quote_ident(r) as name from unnest($1::text[]) as r
			union
			select case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end
			from pg_catalog.pg_class c, pg_catalog.pg_attribute a, lateral (
				select c.relowner as grantee
				union all select x.grantee from aclexplode(c.relacl) x where x.privilege_type = 'UPDATE'
				union all select x.grantee from aclexplode(a.attacl) x where x.privilege_type = 'UPDATE') g
			where c.oid = 'agent_task'::regclass and a.attrelid = c.oid and a.attname = 'status'
		) u where name <> quote_ident(current_user)`, append([]string{}, roles...)).Scan(&users)
	return users, err
}

// advised is an error of which more is known than its class tells.
type advised struct {
	error
	advice string
}

func (a *advised) Unwrap() error { return a.error }

// whoMayMigrate says who may do what this user may not.
func (db *DB) whoMayMigrate(ctx context.Context, err error) error {
	if !errors.Is(reason(err), ErrPermission) {
		return err
	}
	var owner, user string
	if db.row(ctx, []any{&owner, &user}, `select pg_get_userbyid(relowner)::text, current_user::text from pg_catalog.pg_class
		where oid = to_regclass('agent_task')`) != nil || owner == user {
		return err
	}
	return &advised{err, "run it as " + owner + ", who owns table agent_task, or as a superuser: set db.user for this one command, and --grant-to " + user}
}

// Down removes what Migrate added, and nothing else.
func (db *DB) Down(ctx context.Context) error {
	return wrap("remove the agent's schema", db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		return runScript(ctx, tx, migrateDown)
	}))
}

// lockSchema keeps two migrations apart.
func lockSchema(ctx context.Context, tx pgx.Tx) error {
	_, err := tx.Exec(ctx, `select pg_advisory_xact_lock($1::int, 0), set_config('lock_timeout', '5s', true)`, int32(lockClass))
	return err
}

// runScript runs several statements without parameters.
func runScript(ctx context.Context, tx pgx.Tx, script string) error {
	_, err := tx.Exec(ctx, script, pgx.QueryExecModeSimpleProtocol)
	return err
}

// AgentSchema is what there is of the agent's own schema for this user.
type AgentSchema struct {
	// Version is 0 where the schema is not there or this user may not read it.
	Version int
	// Grants are the statements, to be run by its owner, that give this user the
	// rights it lacks there; "" when it lacks none, or there is no schema.
	Grants string
}

// err returns what a caller without the schema is told.
func (s AgentSchema) err() error {
	if s.Grants != "" {
		return &schemaDenied{s.Grants}
	}
	return ErrNotMigrated
}

// schemaDenied is an ErrNotMigrated with the reason that the schema may not be used.
type schemaDenied struct{ grants string }

func (e *schemaDenied) Error() string {
	return "the agent's own schema is in this database, but this user may not use it: `" + e.grants + "`"
}

func (e *schemaDenied) Is(target error) bool { return target == ErrNotMigrated }

// AgentSchema looks for the agent's own schema.
func (db *DB) AgentSchema(ctx context.Context) (s AgentSchema, err error) {
	const doing = "look for the agent's schema"
	// Not to_regclass: it fails where the user may not use the schema.
	var there, readable, usable bool
	var user string
	err = db.row(ctx, []any{&there, &readable, &usable, &user}, `
		select count(*) > 0,
			coalesce(bool_or(c.relname = 'schema_version' and has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT')), false),
			coalesce(bool_and(has_schema_privilege(n.oid, 'USAGE') and (has_table_privilege(c.oid, 'SELECT') and (c.relname = 'schema_version'
				or has_table_privilege(c.oid, 'INSERT') and has_table_privilege(c.oid, 'UPDATE') and has_table_privilege(c.oid, 'DELETE')))), false),
			quote_ident(current_user)
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = 'wrktalk_agent' and c.relkind in ('r', 'p')`)
	if err != nil {
		return s, wrap(doing, err)
	}
	if there && !usable {
		s.Grants = schemaGrants(user)
	}
	if readable {
		err = db.row(ctx, []any{&s.Version}, `select coalesce(max(version), 0) from wrktalk_agent.schema_version`)
	}
	return s, wrap(doing, err)
}

// Migrated returns the version of the agent's own schema, 0 when it is not
// there or this user may not use it.
func (db *DB) Migrated(ctx context.Context) (int, error) {
	s, err := db.AgentSchema(ctx)
	return s.Version, err
}

func (db *DB) migrated(ctx context.Context) (bool, error) {
	v, err := db.Migrated(ctx)
	return v > 0, err
}
