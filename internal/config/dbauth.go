package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// The values of db.require_auth that are not libpq's.
const (
	authAuto = "auto"
	authAny  = "any"
)

// resolveAuth replaces auto by what it means for this server. Whoever answers in
// the place of a server that nothing verifies must not get the password, nor give
// orders: SCRAM is the one login in which the server proves that it knows it. Where
// no password is configured there is none to ask for, and a server that lets the
// agent in by its address, or by its certificate, still does.
func (d *DB) resolveAuth() {
	switch {
	case d.RequireAuth != authAuto:
	case d.verified() || len(d.remoteHosts()) == 0:
		d.RequireAuth = authAny
	case d.Password.Empty() || d.SSLCert != "":
		d.RequireAuth = "!password,!md5"
	default:
		d.RequireAuth = "scram-sha-256"
	}
}

// verified reports whether the server has to prove who it is before it is told
// anything.
func (d *DB) verified() bool { return d.SSLMode == "verify-full" || d.SSLMode == "verify-ca" }

// remoteHosts returns the hosts that are reached over a network.
func (d *DB) remoteHosts() []string {
	return slices.DeleteFunc(slices.Clone(d.Hosts), func(host string) bool {
		address, err := netip.ParseAddr(host)
		return strings.HasPrefix(host, "/") || strings.EqualFold(host, "localhost") || err == nil && address.IsLoopback()
	})
}

// unverified warns of a database that anybody on the way could pretend to be.
func (c *Config) unverified() []string {
	remote := c.DB.remoteHosts()
	if c.DB.verified() || len(remote) == 0 {
		return nil
	}
	return []string{fmt.Sprintf("db.ssl_mode is %s: nothing proves that %s is the database, and whoever gets in between can order deployments; set db.ssl_mode to verify-full, and db.ssl_root_cert to the authority that signed its certificate",
		c.DB.SSLMode, strings.Join(remote, ","))}
}
