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
	return tidy("create the WrkTalk tables", db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
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

// Migrate adds the agent's own schema, wrktalk_agent, and a trigger on
// agent_task that announces work. It adds no column, no constraint and no
// value to the backend's tables, may be repeated, and is undone by Down. It
// gives up when it cannot lock agent_task within some seconds.
func (db *DB) Migrate(ctx context.Context) error {
	return tidy("add the agent's schema", db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := lockSchema(ctx, tx); err != nil {
			return err
		}
		return runScript(ctx, tx, migrate1)
	}))
}

// Down removes what Migrate added, and nothing else.
func (db *DB) Down(ctx context.Context) error {
	return tidy("remove the agent's schema", db.inTx(ctx, func(ctx context.Context, tx pgx.Tx) error {
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

// Migrated returns the version of the agent's own schema, 0 when it is not
// there or this user may not use it.
func (db *DB) Migrated(ctx context.Context) (int, error) {
	const doing = "look for the agent's schema"
	// Not to_regclass: it fails where the user may not use the schema.
	var usable bool
	err := db.row(ctx, []any{&usable}, `
		select coalesce(bool_or(has_schema_privilege(n.oid, 'USAGE') and has_table_privilege(c.oid, 'SELECT')), false)
		from pg_catalog.pg_class c join pg_catalog.pg_namespace n on n.oid = c.relnamespace
		where n.nspname = 'wrktalk_agent' and c.relname = 'schema_version'`)
	if err != nil || !usable {
		return 0, tidy(doing, err)
	}
	var v int
	err = db.row(ctx, []any{&v}, `select coalesce(max(version), 0) from wrktalk_agent.schema_version`)
	return v, tidy(doing, err)
}

func (db *DB) migrated(ctx context.Context) (bool, error) {
	v, err := db.Migrated(ctx)
	return v > 0, err
}
