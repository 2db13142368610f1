package testenv

import (
	"context"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// sessions are a server's idle sessions of the superuser, at most one per
// database. Tests ask the same database again and again.
type sessions struct {
	mu   sync.Mutex
	idle map[string]*pgconn.PgConn
}

func (s *sessions) take(database string) *pgconn.PgConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	conn := s.idle[database]
	delete(s.idle, database)
	return conn
}

// keep returns whether the session is kept; otherwise the caller closes it.
func (s *sessions) keep(database string, conn *pgconn.PgConn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if conn.IsClosed() || s.idle[database] != nil {
		return false
	}
	if s.idle == nil {
		s.idle = map[string]*pgconn.PgConn{}
	}
	s.idle[database] = conn
	return true
}

// closeAll closes the sessions of the named databases, or of all if none is named.
func (s *sessions) closeAll(databases ...string) {
	s.mu.Lock()
	if len(databases) == 0 {
		databases = slices.Collect(maps.Keys(s.idle))
	}
	s.mu.Unlock()
	for _, name := range databases {
		if conn := s.take(name); conn != nil {
			closeSession(conn)
		}
	}
}

func closeSession(conn *pgconn.PgConn) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_ = conn.Close(ctx)
}

// session returns a session with nothing left of earlier statements.
func (p *Postgres) session(ctx context.Context, database string) (*pgconn.PgConn, error) {
	if conn := p.sessions.take(database); conn != nil {
		if _, err := conn.Exec(ctx, "DISCARD ALL").ReadAll(); err == nil {
			return conn, nil
		}
		closeSession(conn) // the server ended it
	}
	u := url.URL{Scheme: "postgres", User: url.User(postgresUser), Host: net.JoinHostPort("", strconv.Itoa(p.Port)), Path: "/" + database}
	u.RawQuery = url.Values{"host": {p.SocketDir}, "sslmode": {"disable"}, "application_name": {"test"}, "client_encoding": {"UTF8"}}.Encode()
	return pgconn.Connect(ctx, u.String())
}

// SQL runs statements in database as the superuser over the Unix socket, all in
// one transaction, and returns the rows as psql -At prints them: one line per
// row, columns separated by "|".
func (p *Postgres) SQL(database, statements string) (string, error) {
	ctx := context.Background()
	conn, err := p.session(ctx, database)
	if err != nil {
		return "", fmt.Errorf("run SQL in database %s: %w", database, err)
	}
	defer func() {
		if !p.sessions.keep(database, conn) {
			closeSession(conn)
		}
	}()
	results, err := conn.Exec(ctx, statements).ReadAll()
	if err != nil {
		return "", fmt.Errorf("run SQL in database %s: %w", database, err)
	}
	var lines []string
	for _, result := range results {
		for _, row := range result.Rows {
			columns := make([]string, len(row))
			for i, value := range row {
				columns[i] = string(value)
			}
			lines = append(lines, strings.Join(columns, "|"))
		}
	}
	return strings.Join(lines, "\n"), nil
}

// CreateDatabase creates an empty database; see Schema for what to put into it.
func (p *Postgres) CreateDatabase(name string) error {
	_, err := p.SQL("postgres", "CREATE DATABASE "+quoteName(name))
	return err
}

// DropDatabase removes a database and ends what sessions it has.
func (p *Postgres) DropDatabase(name string) error {
	p.sessions.closeAll(name)
	_, err := p.SQL("postgres", "DROP DATABASE "+quoteName(name)+" WITH (FORCE)")
	return err
}

func quoteName(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }
