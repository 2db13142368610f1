package taskdb

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Artifact is a row of release_artifact without its bytes. Env and Values are
// secrets.
type Artifact struct {
	ID         string
	Version    string
	ChartType  task.ChartType // trimmed and lower-cased, of any value
	SHA256     string         // trimmed and lower-cased
	Size       int64          // bytes
	Env        *string        // nil when null, or larger than MaxEnv
	Values     *string        // nil when null, or larger than MaxValues
	EnvSize    int64          // bytes, whether it was read or not
	ValuesSize int64
	IsCurrent  bool
	IsPrevious bool
	AppliedAt  *time.Time
	CreatedAt  *time.Time
}

// The largest texts that are read, in bytes: what can be deployed at most. A
// column holds up to a gigabyte, and a process that dies of it would begin
// again.
const (
	MaxEnv    = 4 << 20
	MaxValues = 8 << 20
)

// octet_length reads the size from the TOAST pointer, not the bytes.
var artifactColumns = `id::text, release_version::text, lower(btrim(chart_type::text)), lower(btrim(sha256::text)),
	octet_length(artifact_data)::bigint,
	coalesce(octet_length(env_data::text), 0)::bigint, coalesce(octet_length(values_data::text), 0)::bigint,
	case when octet_length(env_data::text) <= ` + strconv.Itoa(MaxEnv) + ` then env_data::text end,
	case when octet_length(values_data::text) <= ` + strconv.Itoa(MaxValues) + ` then values_data::text end,
	coalesce(is_current, false), coalesce(is_previous, false), applied_at::timestamptz, created_at::timestamptz`

func scanArtifact(row pgx.Row) (*Artifact, error) {
	var a Artifact
	var applied, created timestamp
	err := row.Scan(&a.ID, &a.Version, &a.ChartType, &a.SHA256, &a.Size,
		&a.EnvSize, &a.ValuesSize, &a.Env, &a.Values,
		&a.IsCurrent, &a.IsPrevious, &applied, &created)
	if err != nil {
		return nil, err
	}
	a.AppliedAt, a.CreatedAt = applied.instant(), created.instant()
	return &a, nil
}

func (db *DB) artifact(ctx context.Context, where string, args ...any) (*Artifact, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return scanArtifact(db.pool.QueryRow(ctx, `select `+artifactColumns+` from release_artifact where `+where, args...))
}

// Artifact returns what is known about an artifact; ErrNotFound without it.
func (db *DB) Artifact(ctx context.Context, id string) (*Artifact, error) {
	a, err := db.artifact(ctx, `id = $1`, id)
	return a, wrap(fmt.Sprintf("read artifact %q", id), noSuchID(err))
}

// newest orders artifacts so that of several flagged ones the last applied
// comes first.
const newest = ` order by applied_at desc nulls last, created_at desc nulls last, id desc limit 1`

// Current returns the artifact of a chart type that serves according to the
// flags; ErrNotFound when none does.
func (db *DB) Current(ctx context.Context, chart task.ChartType) (*Artifact, error) {
	a, err := db.artifact(ctx, `lower(btrim(chart_type::text)) = $1::text and is_current`+newest, string(chart))
	return a, wrap(fmt.Sprintf("read the current %s artifact", chart), err)
}

// Previous returns the artifact of a chart type that served before, according
// to the flags; ErrNotFound when there is none. A rollback goes to
// RollbackTarget, which is not always this one.
func (db *DB) Previous(ctx context.Context, chart task.ChartType) (*Artifact, error) {
	a, err := db.artifact(ctx, `lower(btrim(chart_type::text)) = $1::text and is_previous`+newest, string(chart))
	return a, wrap(fmt.Sprintf("read the previous %s artifact", chart), err)
}

// ArtifactByVersion returns the artifact of a release version, the one that
// was created last when there are several; ErrNotFound without any.
func (db *DB) ArtifactByVersion(ctx context.Context, chart task.ChartType, version string) (*Artifact, error) {
	a, err := db.artifact(ctx, `lower(btrim(chart_type::text)) = $1::text and release_version = $2
		order by created_at desc nulls last, id desc limit 1`, string(chart), version)
	return a, wrap(fmt.Sprintf("read the %s artifact of version %q", chart, version), err)
}

// noSuchID turns the complaint about an id that is not of the column's type
// into that of an id that is not there.
func noSuchID(err error) error {
	var pg *pgconn.PgError
	if !errors.As(err, &pg) {
		return err
	}
	switch pg.Code {
	case "22P02", "22003": // no UUID, no number; too large a number
		return ErrNotFound
	}
	return err
}

// Versions returns the release versions of a chart type, the one that was stored last
// first, at most limit of them.
func (db *DB) Versions(ctx context.Context, chart task.ChartType, limit int) ([]string, error) {
	versions, err := list(ctx, db, pgx.RowTo[string], `select release_version::text from release_artifact
		where lower(btrim(chart_type::text)) = $1::text and release_version is not null
		group by 1 order by max(created_at) desc nulls last, 1 desc limit $2::int`, string(chart), limit)
	return versions, wrap(fmt.Sprintf("list the %s releases", chart), err)
}

// Artifacts returns what is known about the artifacts of a chart type, the one that was
// stored last first, at most limit of them; a limit of 0 is none. Their env and values are
// left out.
func (db *DB) Artifacts(ctx context.Context, chart task.ChartType, limit int) ([]*Artifact, error) {
	scan := func(row pgx.CollectableRow) (*Artifact, error) { return scanArtifact(row) }
	all, err := list(ctx, db, scan, `select id::text, coalesce(release_version::text, ''), lower(btrim(chart_type::text)),
			coalesce(lower(btrim(sha256::text)), ''), coalesce(octet_length(artifact_data), 0)::bigint, 0::bigint, 0::bigint, null::text, null::text,
			coalesce(is_current, false), coalesce(is_previous, false), applied_at::timestamptz, created_at::timestamptz
		from release_artifact where lower(btrim(chart_type::text)) = $1::text
		order by created_at desc nulls last, id desc limit nullif($2::int, 0)`, string(chart), limit)
	return all, wrap(fmt.Sprintf("list the %s artifacts", chart), err)
}
