// Package taskdb is the agent's side of the v4.2 database: it claims tasks,
// streams artifacts, keeps leases alive and records outcomes. It is the only
// importer of pgx.
//
// The tables belong to the backend and differ from one backend to the next:
// ids are uuid or varchar, status, type and chart_type text or native enums,
// times with or without time zone (then in UTC, which every session is set
// to). So every query compares as text and passes text, and nothing here
// depends on a column's type.
//
// Queries run in pgx's exec mode by default: one round trip, no prepared
// statement and no cached description, so that they pass through transaction
// poolers and survive a backend that alters its tables. The connection
// string's default_query_exec_mode overrides that.
//
// Only the database's clock decides what is due and whose lease has expired.
package taskdb

import (
	"context"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"
)

const (
	defaultMaxConns = 4
	maxIdle         = 30 * time.Second // then a connection is closed
	connectTimeout  = 10 * time.Second // per host of the connection string
	// opTimeout bounds every call that touches a few rows. A network that fell
	// silent must not hold a caller for ever.
	opTimeout = 30 * time.Second
	// rollbackTimeout bounds the rollback of a transaction that failed.
	rollbackTimeout = 5 * time.Second
	// closeTimeout bounds Close.
	closeTimeout = 500 * time.Millisecond
)

// Options says which database to use, and how.
type Options struct {
	// ConnString is a libpq keyword/value string or a URL. It holds secrets: it
	// is never part of an error or a log line.
	ConnString string
	AppName    string // application_name, unless ConnString sets it
	MaxConns   int32  // ceiling of the pool; 0 is 4
}

// DB is a pool of connections to one database. It is safe for concurrent use.
type DB struct {
	pool *pgxpool.Pool
}

// Open returns a pool without connecting: a database that is down does not
// keep the agent from starting. Connections are opened when they are needed
// and closed when they idle. The context is not kept.
func Open(ctx context.Context, opts Options) (*DB, error) {
	parsed, err := pgconn.ParseConfig(opts.ConnString)
	if err != nil {
		return nil, parseError(err)
	}
	cfg, err := pgxpool.ParseConfig(opts.ConnString)
	if err != nil {
		return nil, parseError(err)
	}
	if _, chosen := parsed.RuntimeParams["default_query_exec_mode"]; !chosen {
		cfg.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
		cfg.ConnConfig.StatementCacheCapacity, cfg.ConnConfig.DescriptionCacheCapacity = 0, 0
	}
	// Only parameters that poolers accept at start-up: PgBouncer refuses a
	// connection that sends statement_timeout or lock_timeout. Transactions set
	// those for themselves.
	params := cfg.ConnConfig.RuntimeParams
	params["timezone"] = "UTC"
	params["datestyle"] = "ISO"
	params["client_encoding"] = "UTF8"
	if params["application_name"] == "" && opts.AppName != "" {
		params["application_name"] = opts.AppName
	}
	if _, given := parsed.RuntimeParams["pool_max_conns"]; !given {
		cfg.MaxConns = defaultMaxConns
	}
	if opts.MaxConns > 0 {
		cfg.MaxConns = opts.MaxConns
	}
	cfg.MinConns = 0
	cfg.MaxConnIdleTime = maxIdle
	cfg.HealthCheckPeriod = maxIdle / 2
	cfg.PingTimeout = 5 * time.Second
	// pgx waits two minutes unless told; a connect_timeout of the string wins.
	if parsed.ConnectTimeout == 0 {
		cfg.ConnConfig.ConnectTimeout = connectTimeout
	}
	dialer := &net.Dialer{KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: 30 * time.Second, Interval: 10 * time.Second, Count: 3,
	}}
	cfg.ConnConfig.DialFunc = dialer.DialContext

	db := &DB{}
	cfg.ConnConfig.OnPgError = func(_ *pgconn.PgConn, err *pgconn.PgError) bool {
		if fromSessionState(err.Code) {
			// A session that began read-only stays so, and polls keep it from idling
			// out: the next call gets a new one. Calls in flight end in theirs.
			db.pool.Reset()
		}
		return err.SeverityUnlocalized != "FATAL"
	}
	if db.pool, err = pgxpool.NewWithConfig(ctx, cfg); err != nil {
		return nil, wrap("open database", err)
	}
	return db, nil
}

// Close closes all connections and waits for calls in flight, but not for long:
// saying goodbye over a network that fell silent takes pgx 15 seconds, and a
// stop must not.
func (db *DB) Close() {
	closed := make(chan struct{})
	// Nobody waits for this one beyond closeTimeout. It holds nothing but the
	// pool, and ends with its last connection, or with the process.
	go func() {
		defer close(closed)
		db.pool.Close()
	}()
	timer := time.NewTimer(closeTimeout)
	defer timer.Stop()
	select {
	case <-closed:
	case <-timer.C:
	}
}

// Ping opens a connection if there is none and asks for a reply.
func (db *DB) Ping(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return wrap("reach the database", db.pool.Ping(ctx))
}

// Now returns the database's clock.
func (db *DB) Now(ctx context.Context) (time.Time, error) {
	var now time.Time
	err := db.row(ctx, []any{&now}, `select clock_timestamp()`)
	return now, wrap("read the database's clock", err)
}

// exec runs one statement and returns how many rows it changed.
func (db *DB) exec(ctx context.Context, sql string, args ...any) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	tag, err := db.pool.Exec(ctx, sql, args...)
	return tag.RowsAffected(), err
}

// row runs a query for one row and scans it into dest.
func (db *DB) row(ctx context.Context, dest []any, sql string, args ...any) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return db.pool.QueryRow(ctx, sql, args...).Scan(dest...)
}

// list runs a query and returns what scan makes of each row; nil without any.
func list[T any](ctx context.Context, db *DB, scan func(pgx.CollectableRow) (T, error), sql string, args ...any) ([]T, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	rows, err := db.pool.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.AppendRows([]T(nil), rows, scan)
}

// errCommitUnknown says that a transaction was or was not committed: the reply
// was lost. Whoever gets it reads back.
var errCommitUnknown = errors.New("commit: the reply was lost")

// inTx runs f in one short transaction, with limits that the server enforces
// even when it never hears from us again.
func (db *DB) inTx(ctx context.Context, f func(context.Context, pgx.Tx) error) error {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	tx, err := db.pool.Begin(ctx)
	if err != nil {
		return err
	}
	// After a commit this does nothing; otherwise nothing is left to report. A
	// network that fell silent must not hold it up: then the connection is closed.
	defer func() {
		end, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackTimeout)
		defer cancel()
		_ = tx.Rollback(end)
	}()

	// Were we cut off, our row locks would stay until the server's keepalive
	// gives up, two hours by default.
	_, err = tx.Exec(ctx, `select set_config('lock_timeout', '10s', true),
		set_config('statement_timeout', '25s', true),
		set_config('idle_in_transaction_session_timeout', '30s', true)`)
	if err != nil {
		return err
	}
	if err := f(ctx, tx); err != nil {
		return err
	}
	err = tx.Commit(ctx)
	var refused *pgconn.PgError
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxCommitRollback),
		errors.As(err, &refused) && refused.SeverityUnlocalized != "FATAL":
		return err // the server says that it did not commit
	default:
		return fmt.Errorf("%w: %w", errCommitUnknown, err)
	}
}

// timestamp scans a nullable, possibly infinite time.
type timestamp struct{ pgtype.Timestamptz }

// instant returns the time, or nil for null and for either infinity, since
// none of them is an instant.
func (t timestamp) instant() *time.Time {
	if !t.Valid || t.InfinityModifier != pgtype.Finite {
		return nil
	}
	return new(t.Time.UTC())
}

// seconds turns a nullable number of seconds into a duration that is never
// shorter; nil for null.
func seconds(s *float64) *time.Duration {
	if s == nil {
		return nil
	}
	const longest = 290 * 365 * 24 * time.Hour // about what a Duration holds
	d := longest
	if *s < longest.Seconds() {
		d = time.Duration(max(*s, -longest.Seconds()) * float64(time.Second)).Round(time.Microsecond)
	}
	return &d
}

func isNotFound(err error) bool { return errors.Is(err, ErrNotFound) }
