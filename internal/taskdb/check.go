package taskdb

import (
	"context"
	"fmt"
	"strings"
)

// neededColumns are the columns the agent reads (r) or also writes (w).
var neededColumns = []struct{ table, column, access string }{
	{"agent_task", "id", "r"},
	{"agent_task", "type", "r"},
	{"agent_task", "status", "w"},
	{"agent_task", "release_artifact_id", "r"},
	{"agent_task", "execute_after", "r"},
	{"agent_task", "picked_up_at", "w"},
	{"agent_task", "completed_at", "w"},
	{"agent_task", "last_heartbeat", "w"},
	{"agent_task", "result", "w"},
	{"agent_task", "error_message", "w"},
	{"agent_task", "created_at", "r"},
	{"agent_task", "updated_at", "w"},
	{"release_artifact", "id", "r"},
	{"release_artifact", "release_version", "r"},
	{"release_artifact", "chart_type", "r"},
	{"release_artifact", "artifact_data", "r"},
	{"release_artifact", "env_data", "r"},
	{"release_artifact", "values_data", "r"},
	{"release_artifact", "sha256", "r"},
	{"release_artifact", "is_current", "w"},
	{"release_artifact", "is_previous", "w"},
	{"release_artifact", "applied_at", "w"},
	{"release_artifact", "created_at", "r"},
	{"admin", "id", "r"},
	{"admin", "name", "r"},
	{"admin", "email", "r"},
	{"admin", "is_active", "r"},
	{"admin", "created_at", "r"},
	{"deployment_config", "id", "r"},
	{"deployment_config", "deployment_type", "r"},
	{"deployment_config", "namespace", "r"},
	{"deployment_config", "helm_release_name", "r"},
	{"deployment_config", "compose_project_name", "r"},
	{"deployment_config", "maintenance_mode_enabled", "w"},
	{"deployment_config", "last_agent_poll", "w"},
	{"deployment_config", "smtp_host", "r"},
	{"deployment_config", "smtp_port", "r"},
	{"deployment_config", "smtp_user", "r"},
	{"deployment_config", "smtp_password", "r"},
	{"deployment_config", "smtp_from", "r"},
	{"deployment_config", "created_at", "r"},
	{"deployment_config", "updated_at", "w"},
}

// tableNames returns the v4.2 tables, also those the agent never reads.
func tableNames() []string {
	return []string{"release_artifact", "agent_task", "admin", "server_env", "deployment_config"}
}

// SchemaError lists what the agent misses in a database, one sentence each.
type SchemaError struct {
	Problems []string
	missing  bool // a table or column is missing, not only a privilege
}

func (e *SchemaError) Error() string {
	return "check the WrkTalk tables: " + strings.Join(e.Problems, "; ")
}

// Is makes a SchemaError an ErrSchema or an ErrPermission.
func (e *SchemaError) Is(target error) bool {
	return target == ErrSchema && e.missing || target == ErrPermission && !e.missing
}

// CheckSchema compares the database with what the agent needs: tables, columns
// and privileges. The error is a *SchemaError that lists everything missing.
func (db *DB) CheckSchema(ctx context.Context) error {
	const doing = "check the WrkTalk tables"
	var tables, columns, access []string
	for _, n := range neededColumns {
		tables, columns, access = append(tables, n.table), append(columns, n.column), append(access, n.access)
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, `
		select n.tab, n.col, c.oid is not null, a.attnum is not null,
			coalesce(has_column_privilege(c.oid, a.attnum, 'SELECT'), false),
			n.access = 'r' or coalesce(has_column_privilege(c.oid, a.attnum, 'UPDATE'), false),
			coalesce((select string_agg(quote_ident(s.nspname), ', ' order by s.nspname) from pg_catalog.pg_class o
				join pg_catalog.pg_namespace s on s.oid = o.relnamespace
				where o.relname = n.tab and o.relkind in ('r', 'p', 'v') and s.nspname <> 'information_schema'), '')
		from unnest($1::text[], $2::text[], $3::text[]) with ordinality as n (tab, col, access, place)
		left join pg_catalog.pg_class c on c.oid = to_regclass(n.tab)
		left join pg_catalog.pg_attribute a on a.attrelid = c.oid and a.attname = n.col and not a.attisdropped and a.attnum > 0
		order by n.place`, tables, columns, access)
	if err != nil {
		return tidy(doing, err)
	}
	defer rows.Close()
	found := &SchemaError{}
	said := map[string]bool{}
	add := func(missing bool, format string, args ...any) {
		if text := fmt.Sprintf(format, args...); !said[text] {
			said[text] = true
			found.Problems = append(found.Problems, text)
			found.missing = found.missing || missing
		}
	}
	for rows.Next() {
		var table, column, elsewhere string
		var hasTable, hasColumn, reads, writes bool
		if err := rows.Scan(&table, &column, &hasTable, &hasColumn, &reads, &writes, &elsewhere); err != nil {
			return tidy(doing, err)
		}
		switch {
		case !hasTable && elsewhere != "":
			add(true, "table %s is in schema %s, which the search_path does not name: set it for the database user", table, elsewhere)
		case !hasTable:
			add(true, "table %s is missing: check db.name, or run `wrktalk-agent migrate --create` on an empty database", table)
		case !hasColumn:
			add(true, "column %s of table %s is missing: the backend's version is not v4.2", column, table)
		case !reads:
			add(false, "the database user may not read column %s of table %s: grant select", column, table)
		case !writes:
			add(false, "the database user may not change column %s of table %s: grant update", column, table)
		}
	}
	if err := rows.Err(); err != nil {
		return tidy(doing, err)
	}
	if len(found.Problems) > 0 {
		return found
	}
	return nil
}
