package config

import (
	"math"
	"net"
	"net/url"
	"strconv"
	"strings"
)

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
	auth := d.RequireAuth
	if auth == authAny {
		auth = ""
	}
	params := []param{
		{"host", newSecret(strings.Join(d.Hosts, ","))},
		{"port", newSecret(joinPorts(d.Ports))},
		{"dbname", newSecret(d.Name)},
		{"user", newSecret(d.User)},
		{"password", d.Password},
		{"sslmode", newSecret(d.SSLMode)},
		{"sslrootcert", newSecret(d.SSLRootCert)},
		{"sslcert", newSecret(d.SSLCert)},
		{"sslkey", newSecret(d.SSLKey)},
		{"target_session_attrs", newSecret(d.TargetSessionAttrs)},
		{"connect_timeout", newSecret(strconv.FormatInt(seconds, 10))},
		// libpq's defaults, pinned against the environment.
		{"sslpassword", Secret{}},
		{"sslcertmode", newSecret("allow")},
		{"sslnegotiation", Secret{}},
		{"sslsni", newSecret("1")},
		{"channel_binding", newSecret("prefer")},
		{"require_auth", newSecret(auth)},
		{"min_protocol_version", Secret{}},
		{"max_protocol_version", Secret{}},
	}
	// Of two with one name the later wins: db.url unpins what it mentions.
	params = append(params, d.params...)

	pairs := make([]string, len(params))
	for i, p := range params {
		pairs[i] = escape(p.name) + "=" + escape(p.value.Reveal())
	}
	return newSecret("postgres:///?" + strings.Join(pairs, "&"))
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
