package taskdb

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"regexp"
	"slices"
	"strings"
	"syscall"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// Errors that callers act upon. They are found with errors.Is.
var (
	// ErrFenced means that the claim is no longer ours: stop, change nothing.
	ErrFenced = errors.New("the claim was taken over or the task was ended by someone else")
	// ErrNotFound means that there is no such row.
	ErrNotFound = errors.New("not found")
	// ErrArtifactGone means that an artifact vanished or shrank while it was read.
	ErrArtifactGone = errors.New("the artifact changed or vanished while it was read")
	// ErrNotMigrated means that the agent's own schema is not there.
	ErrNotMigrated = errors.New("the agent's own schema is not in this database; `wrktalk-agent migrate` adds it")

	// ErrAuth means that the server refused the login.
	ErrAuth = errors.New("the login was refused")
	// ErrNoDatabase means that the server has no such database.
	ErrNoDatabase = errors.New("the database does not exist")
	// ErrUnreachable means that no server answered.
	ErrUnreachable = errors.New("the server cannot be reached")
	// ErrTLS means that no encrypted connection came about.
	ErrTLS = errors.New("the encrypted connection failed")
	// ErrSchema means that a table or column is missing.
	ErrSchema = errors.New("a table or column is missing")
	// ErrPermission means that the database user lacks a privilege.
	ErrPermission = errors.New("a privilege is missing")
)

// Explain returns what an operator can do about err, in one sentence without
// secrets, or "" when there is nothing to add to the error itself.
func Explain(err error) string {
	switch {
	case errors.Is(err, ErrAuth):
		return "check db.user and db.password, and that the server's pg_hba.conf lets this user in from here with this db.ssl_mode"
	case errors.Is(err, ErrNoDatabase):
		return "check db.name"
	case errors.Is(err, ErrTLS):
		return "check db.ssl_mode and the certificate authority it names: the certificate must be valid for the name in db.host"
	case errors.Is(err, ErrUnreachable):
		return "check db.host and db.port, that PostgreSQL runs there, and that no firewall is in between"
	case errors.Is(err, ErrSchema):
		return "check db.name and the search_path: the WrkTalk tables are not all there; for an empty database run `wrktalk-agent migrate --create`"
	case errors.Is(err, ErrPermission):
		return "grant the privilege to db.user, or use a user that has it"
	}
	return ""
}

// Transient reports whether the call that returned err may succeed when it is
// repeated without anyone doing anything here: the server is down, starting,
// full or out of reach.
func Transient(err error) bool {
	if err == nil || errors.Is(err, ErrFenced) || errors.Is(err, ErrNotFound) ||
		errors.Is(err, ErrArtifactGone) || errors.Is(err, context.Canceled) || errors.Is(err, ErrTLS) ||
		errors.Is(err, errConnString) || errors.Is(err, ErrNotMigrated) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return passes(pg.Code)
	}
	return errors.Is(err, ErrUnreachable) || lostConnection(err)
}

// passes reports whether the condition that a server's error code names may
// end by itself.
func passes(code string) bool {
	switch code {
	case "55P03", "55006", // lock not available, object in use
		"25P03", "25P04", // the session's time limits
		"25006": // read-only: a primary that just became a standby
		return true
	}
	switch code[:min(2, len(code))] {
	case "08", "40", "53", "57", "58": // connection, rollback, resources, operator, system
		return true
	}
	return false
}

// lostConnection reports whether err means that a connection ended or never
// came about, as opposed to a server that said no.
func lostConnection(err error) bool {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return pg.SeverityUnlocalized == "FATAL" && passes(pg.Code)
	}
	var network net.Error
	return errors.Is(err, errCommitUnknown) || errors.Is(err, pgconn.ErrConnClosed) ||
		errors.As(err, &network) || errors.Is(err, context.DeadlineExceeded) ||
		strings.Contains(err.Error(), "unexpected EOF") || strings.Contains(err.Error(), "conn closed") ||
		strings.Contains(err.Error(), "closed network connection")
}

// Error is a failed call: what was being done, and why it failed, on one line.
// It holds no part of the connection string, unlike pgx's errors, which carry
// the whole configuration with its password.
type Error struct {
	doing  string
	reason error // one of the sentinels, or nil
	cause  error
}

func (e *Error) Error() string {
	text := strings.Join(strings.Fields(e.cause.Error()), " ")
	return e.doing + ": " + text
}

// Unwrap gives errors.Is the reason and errors.As the cause.
func (e *Error) Unwrap() []error {
	if e.reason == nil {
		return []error{e.cause}
	}
	return []error{e.reason, e.cause}
}

// tidy wraps an error at this package's boundary; nil stays nil.
func tidy(doing string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, pgx.ErrNoRows) {
		err = ErrNotFound
	}
	return &Error{doing: doing, reason: reason(err), cause: withoutConfig(err)}
}

// reason classifies err; nil when it is of no known class.
func reason(err error) error {
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		switch pg.Code {
		case "28P01", "28000":
			return ErrAuth
		case "3D000":
			return ErrNoDatabase
		case "42P01", "42703", "3F000":
			return ErrSchema
		case "42501":
			return ErrPermission
		}
		return nil
	}
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return nil
	}
	var (
		record    tls.RecordHeaderError
		alert     tls.AlertError
		verify    *tls.CertificateVerificationError
		name      x509.HostnameError
		authority x509.UnknownAuthorityError
	)
	text := err.Error()
	switch {
	case errors.As(err, &record), errors.As(err, &alert), errors.As(err, &verify),
		errors.As(err, &name), errors.As(err, &authority),
		strings.Contains(text, "tls error"), strings.Contains(text, "server refused TLS"):
		return ErrTLS
	case strings.Contains(text, "failed SASL"), strings.Contains(text, "SCRAM"), strings.Contains(text, "authentication"):
		return ErrAuth
	}
	return ErrUnreachable
}

// withoutConfig replaces pgx's connect error, which carries the configuration,
// by a text and by the part of the cause that callers may want to look at.
func withoutConfig(err error) error {
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return err
	}
	text := attempts(strings.Replace(connect.Error(), "failed to connect to", "connect to", 1))
	var kept error
	var pg *pgconn.PgError
	var network *net.OpError
	switch {
	case errors.As(err, &pg):
		kept = pg
	case errors.Is(err, context.Canceled):
		kept = context.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		kept = context.DeadlineExceeded
	case errors.As(err, &network):
		kept = network
	case errors.Is(err, syscall.ECONNREFUSED):
		kept = syscall.ECONNREFUSED
	}
	return &said{text: text, kept: kept}
}

// dialed is what pgx and net say before the one word that matters.
var dialed = regexp.MustCompile(`(dial error: )?dial tcp \S+: connect: `)

// attempts shortens pgx's list of attempts: sslmode=prefer and names with
// several addresses make it say the same thing more than once.
func attempts(text string) string {
	var said []string
	for line := range strings.Lines(text) {
		line = dialed.ReplaceAllString(strings.TrimSpace(line), "")
		if line != "" && !slices.Contains(said, line) {
			said = append(said, line)
		}
	}
	if len(said) < 2 {
		return strings.Join(said, "")
	}
	return said[0] + " " + strings.Join(said[1:], "; ")
}

type said struct {
	text string
	kept error
}

func (s *said) Error() string { return s.text }
func (s *said) Unwrap() error { return s.kept }

var errConnString = errors.New("the connection string is wrong")

// parseError describes a connection string that cannot be used without quoting
// any of it: pgx masks passwords on a best-effort basis only.
func parseError(err error) error {
	const doing = "read the database's connection string"
	var file *fs.PathError
	if errors.As(err, &file) {
		return &Error{doing: doing, reason: errConnString, cause: file}
	}
	for _, known := range []struct{ said, mean string }{
		{"failed to parse as URL", "it is not a valid URL; characters other than letters and digits in the password have to be percent-encoded"},
		{"failed to parse as keyword/value", "it is not valid as keywords and values; values with blanks have to be in single quotes"},
		{"failed to read service", "the service it names cannot be read"},
		{"failed to configure TLS", "sslmode is none of PostgreSQL's, or the certificates it names do not fit"},
		{"invalid connect_timeout", "connect_timeout is not a number of seconds"},
		{"could not match", "it names more hosts than ports, or fewer"},
		{"invalid port", "the port is not a number from 1 to 65535"},
		{"target_session_attrs", "target_session_attrs is none of PostgreSQL's"},
		{"default_query_exec_mode", "default_query_exec_mode is none of pgx's"},
		{"pool_", "one of the pool_ settings is not valid"},
	} {
		if strings.Contains(err.Error(), known.said) {
			return &Error{doing: doing, reason: errConnString, cause: errors.New(known.mean)}
		}
	}
	return &Error{doing: doing, reason: errConnString, cause: errors.New("it is not valid")}
}
