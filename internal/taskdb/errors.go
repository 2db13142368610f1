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
	// ErrLoginDemand means that the server asked for a login, or let the agent in
	// without one, that require_auth does not allow. No password was sent.
	ErrLoginDemand = errors.New("the server's demand for a login is not met")
	// ErrParameter means that the server, or a pooler before it, does not know a
	// parameter of the connection.
	ErrParameter = errors.New("a parameter of the connection is not known")
	// ErrReadOnly means that the server takes no writes.
	ErrReadOnly = errors.New("the server takes no writes")
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
	var schema *SchemaError
	var more *advised
	switch {
	case errors.As(err, &more):
		return more.advice
	case errors.As(err, &schema):
		return "" // its sentences say what to do
	case errors.Is(err, ErrLoginDemand):
		return explainDemand(err.Error())
	case errors.Is(err, ErrParameter) && strings.Contains(err.Error(), unsupportedParameter):
		return "the pooler does not pass it on: take it out of db.url; a search_path is set with `alter role USER set search_path = SCHEMA`"
	case errors.Is(err, ErrParameter):
		return "it is a parameter of db.url that PostgreSQL does not know or take: take it out, or correct it"
	case errors.Is(err, ErrReadOnly):
		return "it is a standby, or default_transaction_read_only is on there: `wrktalk-agent check` says which, and how to mend it; name all servers in db.host to find the one that takes writes"
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

// demanded finds in pgx's words which login a server asked for.
var demanded = regexp.MustCompile(`server requested (\S+) authentication`)

// explainDemand says what to do about a server that asks for a login which is not
// allowed.
func explainDemand(text string) string {
	demand, allow := "it lets the agent in without asking for the password, so it need not be the database", "none"
	if m := demanded.FindStringSubmatch(text); m != nil {
		switch allow = m[1]; allow {
		case "password":
			demand = "it asks for the password in clear text"
		case "md5":
			demand = "it asks for the password as an MD5 digest, from which it can be guessed"
		default:
			demand = "it asks for a login by " + allow
		}
	}
	return demand + ", and nothing proves that it is the database: have it ask for scram-sha-256 (pg_hba.conf, password_encryption), or set db.ssl_mode to verify-full and db.ssl_root_cert to its authority; where every host on the way is trusted, set db.require_auth to " + allow + ",scram-sha-256"
}

// unsupportedParameter is what PgBouncer says of a parameter at start-up.
const unsupportedParameter = "unsupported startup parameter"

// Transient reports whether the call that returned err may succeed when it is
// repeated without anyone doing anything here: the server is down, starting,
// full or out of reach.
func Transient(err error) bool {
	if err == nil || errors.Is(err, ErrFenced) || errors.Is(err, ErrNotFound) ||
		errors.Is(err, ErrArtifactGone) || errors.Is(err, context.Canceled) || errors.Is(err, ErrTLS) ||
		errors.Is(err, errConnString) || errors.Is(err, ErrNotMigrated) ||
		errors.Is(err, ErrUnheard) || errors.Is(err, ErrLoginDemand) || errors.Is(err, ErrParameter) || errors.Is(err, ErrAuth) || errors.Is(err, ErrNoDatabase) {
		return false
	}
	var pg *pgconn.PgError
	if errors.As(err, &pg) {
		return isTransientCode(pg.Code)
	}
	return errors.Is(err, ErrUnreachable) || lostConnection(err)
}

// isTransientCode reports whether the condition that a server's error code names
// may end by itself.
func isTransientCode(code string) bool {
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
		return pg.SeverityUnlocalized == "FATAL" && isTransientCode(pg.Code)
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

// wrap wraps an error at this package's boundary; nil stays nil.
func wrap(doing string, err error) error {
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
		case "25006":
			return ErrReadOnly
		case "42704", "22023":
			if pg.SeverityUnlocalized == "FATAL" {
				return ErrParameter
			}
		case "08P01":
			return poolerReason(pg.Message)
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
	case strings.Contains(text, "require_auth check failed"):
		return ErrLoginDemand
	case strings.Contains(text, "ValidateConnect failed: read only connection"):
		return ErrReadOnly
	case errors.As(err, &record), errors.As(err, &alert), errors.As(err, &verify),
		errors.As(err, &name), errors.As(err, &authority),
		strings.Contains(text, "tls error"), strings.Contains(text, "server refused TLS"):
		return ErrTLS
	case strings.Contains(text, "failed SASL"), strings.Contains(text, "SCRAM"), strings.Contains(text, "authentication"):
		return ErrAuth
	}
	return ErrUnreachable
}

// poolerReason classifies what PgBouncer says under the code of a violated protocol.
func poolerReason(message string) error {
	switch {
	case strings.Contains(message, unsupportedParameter):
		return ErrParameter
	case strings.Contains(message, "no such database"):
		return ErrNoDatabase
	case strings.Contains(message, "no such user"), strings.Contains(message, "authentication failed"):
		return ErrAuth
	}
	return nil
}

// fromSessionState reports whether a server's error may come from what a session
// got when it began and keeps: that it is read-only, or where it looks for tables.
func fromSessionState(code string) bool {
	switch code {
	case "25006", "42P01", "42703", "42883", "3F000", "42501":
		return true
	}
	return false
}

// withoutConfig replaces pgx's connect error, which carries the configuration,
// by a text and by the part of the cause that callers may want to look at.
func withoutConfig(err error) error {
	var connect *pgconn.ConnectError
	if !errors.As(err, &connect) {
		return err
	}
	text := dedupe(strings.Replace(connect.Error(), "failed to connect to", "connect to", 1))
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
	return &sanitized{text: text, kept: kept}
}

// dialed is what pgx and net say before the one word that matters.
var dialed = regexp.MustCompile(`(dial error: )?dial tcp \S+: connect: `)

// dedupe shortens pgx's list of attempts: sslmode=prefer and names with
// several addresses make it say the same thing more than once.
func dedupe(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		line = dialed.ReplaceAllString(strings.TrimSpace(line), "")
		if line != "" && !slices.Contains(lines, line) {
			lines = append(lines, line)
		}
	}
	if len(lines) < 2 {
		return strings.Join(lines, "")
	}
	return lines[0] + " " + strings.Join(lines[1:], "; ")
}

type sanitized struct {
	text string
	kept error
}

func (s *sanitized) Error() string { return s.text }
func (s *sanitized) Unwrap() error { return s.kept }

var errConnString = errors.New("the connection string is wrong")

// parseError describes a connection string that cannot be used without quoting
// any of it: pgx masks passwords on a best-effort basis only.
func parseError(err error) error {
	const doing = "read the database's connection string"
	var file *fs.PathError
	if errors.As(err, &file) {
		return &Error{doing: doing, reason: errConnString, cause: file}
	}
	for _, known := range []struct{ text, meaning string }{
		{"failed to parse as URL", "it is not a valid URL; characters other than letters and digits in the password have to be percent-encoded"},
		{"failed to parse as keyword/value", "it is not valid as keywords and values; values with blanks have to be in single quotes"},
		{"failed to read service", "the service it names cannot be read"},
		{"failed to configure TLS", "sslmode is none of PostgreSQL's, or the certificates it names do not fit"},
		{"invalid connect_timeout", "connect_timeout is not a number of seconds"},
		{"could not match", "it names more hosts than ports, or fewer"},
		{"invalid port", "the port is not a number from 1 to 65535"},
		{"require_auth", "require_auth is none of PostgreSQL's, or mixes logins with and without !"},
		{"target_session_attrs", "target_session_attrs is none of PostgreSQL's"},
		{"default_query_exec_mode", "default_query_exec_mode is none of pgx's"},
		{"pool_", "one of the pool_ settings is not valid"},
	} {
		if strings.Contains(err.Error(), known.text) {
			return &Error{doing: doing, reason: errConnString, cause: errors.New(known.meaning)}
		}
	}
	return &Error{doing: doing, reason: errConnString, cause: errors.New("it is not valid")}
}
