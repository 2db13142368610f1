package testenv

import (
	_ "embed"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

// Schema says which tables a database gets, and how its backend typed the
// columns. The values are flags.
type Schema uint

// The schemas that backends of v4.2 have been seen with.
const (
	SchemaV42       Schema = 0         // as the reference file has it
	VarcharIDs      Schema = 1 << iota // ids are varchar, without a default
	NativeEnums                        // status, type and chart_type are enum types
	MilliTimestamps                    // timestamp(3) without time zone, in UTC
	TextResult                         // agent_task.result is text
	EmptySchema                        // no tables at all
)

// Schemas are the schemas every query has to work with, by name.
var Schemas = map[string]Schema{
	"v42": SchemaV42, "varchar_ids": VarcharIDs, "enums": NativeEnums, "timestamp3": MilliTimestamps,
	"all": VarcharIDs | NativeEnums | MilliTimestamps | TextResult,
}

//go:embed schema_v42.sql
var schemaV42 string

// SQL returns the statements that create the tables.
func (s Schema) SQL() string {
	if s&EmptySchema != 0 {
		return ""
	}
	sql := schemaV42
	var before string
	if s&VarcharIDs != 0 {
		sql = strings.ReplaceAll(sql, " uuid PRIMARY KEY DEFAULT uuid_generate_v4()", " varchar(64) PRIMARY KEY")
		sql = strings.ReplaceAll(sql, " uuid REFERENCES", " varchar(64) REFERENCES")
	}
	if s&NativeEnums != 0 {
		before = `CREATE TYPE task_status AS ENUM ('pending', 'inProgress', 'completed', 'failed');
CREATE TYPE task_type AS ENUM ('deploy', 'rollback', 'reboot');
CREATE TYPE chart AS ENUM ('helm', 'compose', 'nomad');
`
		sql = strings.NewReplacer(
			"status              varchar(50)", "status task_status",
			"type                varchar(50)", "type task_type",
			"chart_type      varchar(20)", "chart_type chart",
		).Replace(sql)
	}
	if s&MilliTimestamps != 0 {
		sql = strings.ReplaceAll(sql, "timestamptz", "timestamp(3)")
	}
	if s&TextResult != 0 {
		sql = strings.ReplaceAll(sql, "result              jsonb", "result text")
	}
	return before + sql
}

// DB is a database of its own for one test.
type DB struct {
	Name       string
	ConnString string // as the superuser; holds no password
	Server     *Postgres
}

var shared struct {
	once   sync.Once
	server *Postgres
	err    error
	count  atomic.Int64
}

// SharedPostgres returns the server that the tests of this process share. It
// skips the test where PostgreSQL is not installed, and fails it in CI. Main
// stops the server.
func SharedPostgres(t testing.TB) *Postgres {
	t.Helper()
	shared.once.Do(func() {
		shared.server, shared.err = StartPostgres(PostgresOptions{})
		if shared.err == nil {
			AtExit(shared.server.Stop)
		}
	})
	if errors.Is(shared.err, ErrNoPostgres) {
		Missing(t, "PostgreSQL", shared.err)
	}
	if shared.err != nil {
		t.Fatal(shared.err)
	}
	return shared.server
}

// Database returns a fresh database on the shared server with the v4.2 tables,
// or with the given variant of them. It is dropped when the test ends.
func Database(t testing.TB, variant ...Schema) *DB {
	t.Helper()
	server := SharedPostgres(t)
	var schema Schema
	for _, v := range variant {
		schema |= v
	}
	name := fmt.Sprintf("test_%d_%d", os.Getpid(), shared.count.Add(1))
	db, err := server.NewDatabase(name, schema)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := server.SQL("postgres", "DROP DATABASE "+name+" WITH (FORCE)"); err != nil {
			t.Error(err)
		}
	})
	return db
}

// NewDatabase creates a database with the tables of schema in it.
func (p *Postgres) NewDatabase(name string, schema Schema) (*DB, error) {
	if err := p.CreateDatabase(name); err != nil {
		return nil, err
	}
	if sql := schema.SQL(); sql != "" {
		if _, err := p.SQL(name, sql); err != nil {
			return nil, err
		}
	}
	return &DB{Name: name, ConnString: p.URL(name), Server: p}, nil
}

// SQL runs statements as the superuser and returns what they print; see
// Postgres.SQL. An error ends the test.
func (d *DB) SQL(t testing.TB, statements string) string {
	t.Helper()
	out, err := d.Server.SQL(d.Name, statements)
	if err != nil {
		t.Fatal(err)
	}
	return out
}
