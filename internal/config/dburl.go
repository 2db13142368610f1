package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// param is a parameter of db.url that has no key of its own. Its value may be a
// secret (sslpassword).
type param struct {
	name  string
	value Secret
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
	"require_auth":         "db.require_auth",
	"target_session_attrs": "db.target_session_attrs",
	"connect_timeout":      "db.connect_timeout",
}

// driverParams are parameters that drivers and their pools put into a database URL
// for themselves (https://www.prisma.io/docs/orm/overview/databases/postgresql),
// with the key that does the same here, "" for none. The server would refuse the
// connection because of them.
var driverParams = map[string]string{
	"connection_limit":              "db.max_conns",
	"pool":                          "db.max_conns",
	"pool_size":                     "db.max_conns",
	"max_overflow":                  "db.max_conns",
	"pool_timeout":                  "",
	"pool_recycle":                  "",
	"pool_pre_ping":                 "",
	"socket_timeout":                "",
	"statement_cache_size":          "",
	"prepared_statements":           "",
	"prepared_statement_cache_size": "",
	"max_connection_lifetime":       "",
	"max_idle_connection_lifetime":  "",
	"single_use_connections":        "",
	"conn_max_age":                  "",
	"uselibpqcompat":                "",
	"pgbouncer":                     "", // no statement is prepared anyway
	"supa":                          "",
}

// dbParts are the keys that say what db.url says: one or the other.
var dbParts = []string{"db.host", "db.port", "db.name", "db.user", "db.password"}

// isPart reports whether the key called name is one of dbParts.
func isPart(name string) bool { return slices.Contains(dbParts, name) }

// dbURL is a parsed database URL: the texts for our keys, and what is left.
type dbURL struct {
	values  map[string]string // by key name
	params  []param
	ignored []string // driverParams that it names
	strict  bool     // sslaccept=strict, which is Prisma's
}

// Errors about a URL say how to write it and quote nothing: in a malformed URL
// a piece of the password may stand anywhere.
var (
	errURLScheme  = errors.New("want an address that begins with postgres:// or postgresql://")
	errURLPrisma  = errors.New("this is the address of a service of Prisma's: want PostgreSQL's own, which begins with postgres:// (directUrl in schema.prisma)")
	errURLAt      = errors.New("there is an @ after the host: within user name and password write @ as %40, : as %3A and / as %2F, or use db.user and db.password instead")
	errURLEscape  = errors.New("a % is not followed by two hexadecimal digits: write % itself as %25")
	errURLBracket = errors.New("an IPv6 address misses its closing bracket")
	errURLPair    = errors.New("what follows the ? is not name=value pairs joined by &: write ? as %3F, & as %26 and = as %3D")
)

func checkDBURL(text string) error {
	_, err := parseDBURL(text)
	return err
}

// parseDBURL takes a database URL apart into our keys and what is left, which pgx
// gets. pgx's own parser cannot do this: it is not exported, and what ParseConfig
// returns no longer says which parts the URL named (the rest comes from PG*
// variables, ~/.postgresql and the system's user), nor what it said of sslmode,
// its files and target_session_attrs. net/url takes neither several hosts nor the
// unencoded characters that libpq takes. Everything else about a connection is
// pgx's to understand; TestURLMeansTheSameToPgx compares the two.
//
// Stricter than libpq, it refuses an @ after the host, where it is always the end
// of a password that was not encoded.
func parseDBURL(text string) (dbURL, error) {
	u := dbURL{values: map[string]string{}}
	scheme, rest, ok := strings.Cut(strings.TrimSpace(text), "://")
	scheme, _, _ = strings.Cut(scheme, "+") // SQLAlchemy names its driver: postgresql+asyncpg
	switch {
	case ok && scheme == "prisma": // also prisma+postgres
		return u, errURLPrisma
	case !ok || scheme != "postgres" && scheme != "postgresql":
		return u, errURLScheme
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
		switch {
		case name == "ssl" && value == "true", // as JDBC spells it
			name == "sslmode" && value == "no-verify": // as node-postgres does
			name, value = "sslmode", "require"
		}
		if err := u.put(name, value); err != nil {
			return u, err
		}
	}
	u.likePrisma()
	return u, nil
}

// likePrisma gives what is Prisma's alone its meaning there: sslaccept=strict
// verifies the server, and sslcert is the authority of the server's certificate.
func (u *dbURL) likePrisma() {
	mode := u.values["db.ssl_mode"]
	if !u.strict || mode == "disable" {
		return
	}
	if mode != "verify-ca" {
		u.values["db.ssl_mode"] = "verify-full"
	}
	if ca := u.values["db.ssl_cert"]; ca != "" && u.values["db.ssl_key"] == "" && u.values["db.ssl_root_cert"] == "" {
		delete(u.values, "db.ssl_cert")
		u.values["db.ssl_root_cert"] = ca
	}
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
	_, driver := driverParams[name]
	switch {
	case value == "":
		return nil
	case name == "schema" || name == "currentSchema": // Prisma's, and JDBC's
		if value != "public" { // where PostgreSQL looks anyway, and poolers refuse search_path
			u.params = append(u.params, param{"search_path", newSecret(`"` + strings.ReplaceAll(value, `"`, `""`) + `"`)})
		}
	case name == "sslaccept" && (value == "strict" || value == "accept_invalid_certs"):
		u.strict = value == "strict"
	case name == "sslaccept":
		return errors.New("sslaccept is strict or accept_invalid_certs")
	case name == "sslidentity":
		return errors.New("sslidentity is Prisma's: name certificate and key as PEM files, sslcert and sslkey (`openssl pkcs12 -nodes -in FILE` writes both)")
	case driver:
		u.ignored = append(u.ignored, name)
	case urlKeys[name] != "":
		u.values[urlKeys[name]] = value
	case name == "service" || name == "servicefile":
		return errors.New("service files are not supported: write what they say into the address")
	case name == "ssl":
		return errors.New("ssl is not libpq's: use sslmode")
	case strings.HasPrefix(name, "pool_"):
		return errors.New("pool_ parameters are not supported: use db.max_conns")
	default:
		u.params = append(u.params, param{name, newSecret(value)})
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
	if c.DB.SSLCert != "" && c.DB.SSLKey == "" && len(problems) == 0 && u.values["db.ssl_cert"] != "" {
		problems = append(problems, fmt.Errorf("db.url (%s): sslcert goes with sslkey; the authority of the server's certificate, which Prisma calls sslcert, is sslrootcert", source))
	}
	c.DB.params, c.urlIgnored = u.params, u.ignored
	return problems
}

// urlWarnings says which parameters of db.url are of no use here.
func (c *Config) urlWarnings() []string {
	var warnings []string
	for _, name := range slices.Compact(slices.Sorted(slices.Values(c.urlIgnored))) {
		if name == "pgbouncer" {
			continue // what it asks for is done
		}
		w := fmt.Sprintf("db.url (%s): %s is for another program's driver and is ignored", c.source("db.url"), name)
		if own := driverParams[name]; own != "" {
			w += ": here it is " + own
		}
		warnings = append(warnings, w)
	}
	return warnings
}
