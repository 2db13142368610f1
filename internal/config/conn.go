package config

import (
	"errors"
	"fmt"
	"math"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
)

// param is a parameter of db.url that has no key of its own. Its value may be a
// secret (sslpassword).
type param struct {
	name  string
	value Secret
}

// ConnString returns the address to give to pgx: a postgres:// URL in which
// everything is a percent-encoded query parameter, so that any character may
// stand anywhere, and so that pgx finds and masks the password should it ever
// quote the URL in an error.
//
// It names every setting that pgx would otherwise take from the libpq
// variables (PGHOST, PGPASSWORD, PGSSLMODE, ...) or from ~/.postgresql, even
// where the value is empty: what `wrktalk-agent config` shows is what is used.
// Left alone is ~/.pgpass (PGPASSFILE) for when there is no password, as users
// of libpq expect, and what does not say where and how to connect (PGOPTIONS,
// PGAPPNAME, PGTZ).
func (d DB) ConnString() Secret {
	// connect_timeout counts whole seconds, and 0 would mean for ever.
	seconds := int64(math.Ceil(d.ConnectTimeout.Seconds()))
	params := []param{
		{"host", NewSecret(strings.Join(d.Hosts, ","))},
		{"port", NewSecret(joinPorts(d.Ports))},
		{"dbname", NewSecret(d.Name)},
		{"user", NewSecret(d.User)},
		{"password", d.Password},
		{"sslmode", NewSecret(d.SSLMode)},
		{"sslrootcert", NewSecret(d.SSLRootCert)},
		{"sslcert", NewSecret(d.SSLCert)},
		{"sslkey", NewSecret(d.SSLKey)},
		{"target_session_attrs", NewSecret(d.TargetSessionAttrs)},
		{"connect_timeout", NewSecret(strconv.FormatInt(seconds, 10))},
		// libpq's defaults, pinned against the environment.
		{"sslpassword", Secret{}},
		{"sslcertmode", NewSecret("allow")},
		{"sslnegotiation", Secret{}},
		{"sslsni", NewSecret("1")},
		{"channel_binding", NewSecret("prefer")},
		{"require_auth", Secret{}},
		{"min_protocol_version", Secret{}},
		{"max_protocol_version", Secret{}},
	}
	// Of two with one name the later wins: db.url unpins what it mentions.
	params = append(params, d.params...)

	pairs := make([]string, len(params))
	for i, p := range params {
		pairs[i] = escape(p.name) + "=" + escape(p.value.Reveal())
	}
	return NewSecret("postgres:///?" + strings.Join(pairs, "&"))
}

// escape percent-encodes s for libpq, to which + is a plus sign.
func escape(s string) string { return strings.ReplaceAll(url.QueryEscape(s), "+", "%20") }

// Address returns where the database is, for messages: "db1:5432,db2:5432/name".
// It holds no secret.
func (d DB) Address() string {
	list := make([]string, len(d.Hosts))
	for i, host := range d.Hosts {
		port := d.Ports[0]
		if len(d.Ports) == len(d.Hosts) {
			port = d.Ports[i]
		}
		list[i] = net.JoinHostPort(host, strconv.Itoa(int(port)))
	}
	return strings.Join(list, ",") + "/" + d.Name
}

// urlKeys are the parameters of a database URL that have a key of their own.
var urlKeys = map[string]string{
	"host":                 "db.host",
	"port":                 "db.port",
	"dbname":               "db.name",
	"database":             "db.name",
	"user":                 "db.user",
	"password":             "db.password",
	"sslmode":              "db.ssl_mode",
	"sslrootcert":          "db.ssl_root_cert",
	"sslcert":              "db.ssl_cert",
	"sslkey":               "db.ssl_key",
	"target_session_attrs": "db.target_session_attrs",
	"connect_timeout":      "db.connect_timeout",
}

// dbParts are the keys that say what db.url says: one or the other.
var dbParts = []string{"db.host", "db.port", "db.name", "db.user", "db.password"}

// isPart reports whether the key called name is one of dbParts.
func isPart(name string) bool { return slices.Contains(dbParts, name) }

// dbURL is a parsed database URL: the texts for our keys, and what is left.
type dbURL struct {
	values map[string]string // by key name
	params []param
}

// Errors about a URL say how to write it and quote nothing: in a malformed URL
// a piece of the password may stand anywhere.
var (
	errURLScheme  = errors.New("want an address that begins with postgres:// or postgresql://")
	errURLAt      = errors.New("there is an @ after the host: within user name and password write @ as %40, : as %3A and / as %2F, or use db.user and db.password instead")
	errURLEscape  = errors.New("a % is not followed by two hexadecimal digits: write % itself as %25")
	errURLBracket = errors.New("an IPv6 address misses its closing bracket")
	errURLPair    = errors.New("what follows the ? is not name=value pairs joined by &: write ? as %3F, & as %26 and = as %3D")
)

func checkDBURL(text string) error {
	_, err := parseDBURL(text)
	return err
}

// parseDBURL reads a database URL as libpq does, several hosts included (which
// is why net/url will not do). Stricter than libpq, it refuses an @ after the
// host, where it is always the end of a password that was not encoded.
func parseDBURL(text string) (dbURL, error) {
	u := dbURL{values: map[string]string{}}
	rest, ok := strings.CutPrefix(strings.TrimSpace(text), "postgres://")
	if !ok {
		if rest, ok = strings.CutPrefix(rest, "postgresql://"); !ok {
			return u, errURLScheme
		}
	}

	if i := strings.IndexAny(rest, "@/"); i >= 0 && rest[i] == '@' {
		user, password, _ := strings.Cut(rest[:i], ":")
		rest = rest[i+1:]
		if err := u.put("user", user); err != nil {
			return u, err
		}
		if err := u.put("password", password); err != nil {
			return u, err
		}
	}
	if strings.Contains(rest, "@") {
		return u, errURLAt
	}

	rest, query, _ := strings.Cut(rest, "?")
	netloc, name, _ := strings.Cut(rest, "/")
	if err := u.put("dbname", name); err != nil {
		return u, err
	}
	hosts, ports, err := splitNetloc(netloc)
	if err != nil {
		return u, err
	}
	if err := u.put("host", hosts); err != nil {
		return u, err
	}
	if err := u.put("port", ports); err != nil {
		return u, err
	}

	for pair := range strings.SplitSeq(query, "&") {
		if pair == "" {
			continue
		}
		name, value, ok := strings.Cut(pair, "=")
		if !ok || strings.Contains(value, "=") {
			return u, errURLPair
		}
		if name, err = url.PathUnescape(name); err != nil {
			return u, errURLEscape
		}
		if name == "ssl" && value == "true" { // as JDBC spells it
			name, value = "sslmode", "require"
		}
		if err := u.put(name, value); err != nil {
			return u, err
		}
	}
	return u, nil
}

// splitNetloc splits h1:p1,h2,[::1]:p3 into its hosts and ports. Where no host
// has a port there are no ports; a single missing one is PostgreSQL's own.
func splitNetloc(netloc string) (hosts, ports string, err error) {
	if netloc == "" {
		return "", "", nil
	}
	var hostList, portList []string
	given := false
	for one := range strings.SplitSeq(netloc, ",") {
		var port string
		if inner, ok := strings.CutPrefix(one, "["); ok {
			if one, port, ok = strings.Cut(inner, "]"); !ok {
				return "", "", errURLBracket
			}
			port = strings.TrimPrefix(port, ":")
		} else {
			one, port, _ = strings.Cut(one, ":")
		}
		given = given || port != ""
		if port == "" {
			port = "5432"
		}
		hostList, portList = append(hostList, one), append(portList, port)
	}
	hosts = strings.Join(hostList, ",")
	if !given {
		return hosts, "", nil
	}
	// A URL of a port and no host means the default host, as in postgres://:5433/.
	return hosts, strings.Join(portList, ","), nil
}

// put records one percent-encoded part of the URL; an empty one leaves our
// default in place.
func (u *dbURL) put(name, encoded string) error {
	value, err := url.PathUnescape(encoded)
	if err != nil {
		return errURLEscape
	}
	if strings.ContainsRune(value, 0) || strings.ContainsRune(name, 0) {
		return errors.New("want an address without NUL bytes")
	}
	switch {
	case value == "":
		return nil
	case urlKeys[name] != "":
		u.values[urlKeys[name]] = value
	case name == "service" || name == "servicefile":
		return errors.New("service files are not supported: write what they say into the address")
	case name == "ssl":
		return errors.New("ssl is not libpq's: use sslmode")
	case strings.HasPrefix(name, "pool_"):
		return errors.New("pool_ parameters are not supported: use db.max_conns")
	default:
		u.params = append(u.params, param{name, NewSecret(value)})
	}
	return nil
}

// applyURL fills the parts of [db] in from db.url.
func (c *Config) applyURL() []error {
	if c.DB.URL.Empty() {
		return nil
	}
	source := c.source("db.url")
	u, err := parseDBURL(c.DB.URL.Reveal())
	if err != nil {
		return []error{fmt.Errorf("db.url (%s): %w", source, err)}
	}
	var problems []error
	for _, k := range keys {
		value, ok := u.values[k.name]
		if !ok {
			continue
		}
		if own := c.source(k.name); own != sourceDefault && !isPart(k.name) {
			problems = append(problems, fmt.Errorf("db.url (%s) and %s (%s) say the same thing twice: keep one", source, k.name, own))
			continue
		}
		if err := k.set(c, value); err != nil {
			problems = append(problems, fmt.Errorf("db.url (%s): what it says of %s is wrong: %w", source, k.name, err))
		}
		c.fromURL = append(c.fromURL, k.name)
	}
	c.DB.params = u.params
	return problems
}
