package config

import (
	"crypto/tls"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// noLibpq empties the process environment of what pgconn reads, and gives it a
// home without files.
func noLibpq(t *testing.T) {
	t.Helper()
	t.Setenv("HOME", t.TempDir())
	for _, pair := range os.Environ() {
		if name, _, _ := strings.Cut(pair, "="); strings.HasPrefix(name, "PG") {
			t.Setenv(name, "")
		}
	}
}

func parse(t *testing.T, connString string) *pgconn.Config {
	t.Helper()
	c, err := pgconn.ParseConfig(connString)
	if err != nil {
		t.Fatalf("ParseConfig: %v", err)
	}
	return c
}

// place is what of a pgconn.Config says where and how to connect.
type place struct {
	User, Password, Database string
	Timeout                  time.Duration
	Hosts                    []hostPort
	Params                   map[string]string
	Attrs                    bool // target_session_attrs is not any
	Negotiation, Binding     string
}

type hostPort struct {
	Host                string
	Port                uint16
	TLS, Checks, Client bool
	ServerName          string
}

func placeOf(c *pgconn.Config) place {
	p := place{
		User: c.User, Password: c.Password, Database: c.Database, Timeout: c.ConnectTimeout,
		Params: c.RuntimeParams, Attrs: c.ValidateConnect != nil,
		Negotiation: c.SSLNegotiation, Binding: c.ChannelBinding,
	}
	add := func(host string, port uint16, t *tls.Config) {
		h := hostPort{Host: host, Port: port}
		if t != nil {
			h.TLS, h.Checks, h.Client, h.ServerName = true, !t.InsecureSkipVerify, len(t.Certificates) > 0, t.ServerName
		}
		p.Hosts = append(p.Hosts, h)
	}
	add(c.Host, c.Port, c.TLSConfig)
	for _, f := range c.Fallbacks {
		add(f.Host, f.Port, f.TLSConfig)
	}
	return p
}

var passwords = []string{
	"plain", "p@ss:w/rd", "100%", "%41", "a'b", `back\slash`, " lead and trail ", "tab\tnew\nline\r",
	"ünïcödé 密码 🔑", "a+b&c=d?e#f", `"quoted"`, "[x]", "\x01\x7f", "latin1 \xe9\xff", "$(x) `y` ${Z}",
	"postgres://u:p@h/d", "x' password='y", "=", "&", "'",
}

func TestAnyPassword(t *testing.T) {
	noLibpq(t)
	for _, password := range passwords {
		c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD=" + password}))
		for _, conn := range []string{
			c.DB.ConnString().Reveal(),
			reload(t, c).DB.ConnString().Reveal(),
		} {
			got := parse(t, conn)
			if got.Password != password || got.User != "postgres" || got.Database != "wrktalk" || got.Host != "localhost" {
				t.Errorf("password %q became %q (user %q, database %q, host %q)", password, got.Password, got.User, got.Database, got.Host)
			}
		}
		// The same through a URL, as a person would encode it.
		u := "WRKTALK_AGENT_DB_URL=postgres://agent:" + escape(password) + "@db/name"
		got := parse(t, mustLoad(t, source(t, []string{docker, u})).DB.ConnString().Reveal())
		if got.Password != password || got.Host != "db" {
			t.Errorf("password %q became %q through db.url (host %q)", password, got.Password, got.Host)
		}
	}
}

// pgx's own errors quote the connection string: the form we hand over is one
// that it masks.
func TestPgxMasksThePassword(t *testing.T) {
	noLibpq(t)
	for _, password := range passwords {
		if len(password) < 3 {
			continue
		}
		c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD=" + password}, "db.ssl_root_cert=/does/not/exist"))
		_, err := pgconn.ParseConfig(c.DB.ConnString().Reveal())
		if err == nil {
			t.Fatal("ParseConfig found a file that does not exist")
		}
		if strings.Contains(err.Error(), password) || strings.Contains(err.Error(), escape(password)) {
			t.Errorf("error holds the password %q: %v", password, err)
		}
	}
}

// What a URL says must mean to us what it means to libpq. Where libpq would ask
// the system, we have defaults of our own: those URLs are in TestURLDefaults.
func TestURLMeansTheSameToPgx(t *testing.T) {
	noLibpq(t)
	for _, u := range []string{
		"postgres://u:p@h:5433/d?connect_timeout=10",
		"postgresql://u@h/d?connect_timeout=10&sslmode=disable",
		"postgres://u:p@h1:1,h2,h3:3/d?connect_timeout=10&target_session_attrs=any",
		"postgres://u:p@h1,h2/d?connect_timeout=10&target_session_attrs=primary",
		"postgres://u:p@[::1]:5433,[fe80::1]/d?connect_timeout=10&target_session_attrs=read-write",
		"postgres://%2Frun%2Fpostgresql/d?user=u&connect_timeout=10",
		"postgres:///d?host=/run/postgresql&port=5433&user=u&password=a%20b&connect_timeout=10",
		"postgres://u:p%40%3A%2F%25@h/d%20b?connect_timeout=3&application_name=a+b%20c&sslmode=require",
		"postgres://u@h/d?dbname=other&connect_timeout=10&sslnegotiation=direct&channel_binding=require",
		"postgres://u@h/d?ssl=true&connect_timeout=10",
		"postgres://u@h/d?application_name=a&connect_timeout=9&application_name=b&connect_timeout=10",
		"postgres://u@h/d?connect_timeout=10&sslmode=verify-full&options=-c%20x.y%3D1",
	} {
		c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=" + u}))
		got, want := placeOf(parse(t, c.DB.ConnString().Reveal())), placeOf(parse(t, u))
		if !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", u, got, want)
		}
	}
}

func TestURLDefaults(t *testing.T) {
	c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=postgres://:@/?sslmode=require"}))
	if got := c.DB.Address(); got != "localhost:5432/wrktalk" || c.DB.User != "postgres" {
		t.Errorf("got %s as %s", got, c.DB.User)
	}
	for name, want := range map[string]string{"db.ssl_mode": "db.url", "db.host": "default", "db.url": "environment WRKTALK_AGENT_DB_URL"} {
		if got := setting(t, c, name).Source; got != want {
			t.Errorf("source of %s = %q, want %q", name, got, want)
		}
	}
	c = mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=postgres://a,b:7/x"}))
	if got := c.DB.Address(); got != "a:5432,b:7/x" || c.DB.TargetSessionAttrs != "read-write" {
		t.Errorf("got %s, %s", got, c.DB.TargetSessionAttrs)
	}
	c = mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=postgres://a/x"}, "db.ssl_mode=disable", "db.max_conns=4"))
	if c.DB.SSLMode != "disable" || c.DB.MaxConns != 4 {
		t.Errorf("keys beside the URL are lost: %+v", c.DB)
	}
}

func TestBadURLs(t *testing.T) {
	const hidden = "hUnTeR2"
	for _, test := range []struct{ url, want string }{
		{"mysql://u:hUnTeR2@h/d", "begins with postgres://"},
		{"host=h password=hUnTeR2", "begins with postgres://"},
		{"postgres://u:hUnTeR2@x@h/d", "write @ as %40"},
		{"postgres://u:12/hUnTeR2@h/d", "write @ as %40"},
		{"postgres://u:hUnTeR2%zz@h/d", "write % itself as %25"},
		{"postgres://u:hUnTeR2@[::1/d", "closing bracket"},
		{"postgres://u:p@h/d?hUnTeR2", "name=value"},
		{"postgres://u:p@h/d?a=hUnTeR2=b", "name=value"},
		{"postgres://u:hUnTeR2@h:port/d", "db.port is wrong: want ports"},
		{"postgres://u:hUnTeR2/d", "db.port is wrong: want ports"},
		{"postgres://u:hUnTeR2@h/d?sslmode=on", "db.ssl_mode is wrong: want"},
		{"postgres://u:hUnTeR2@h/d?service=x", "service files are not supported"},
		{"postgres://u:hUnTeR2@h/d?pool_max_conns=3", "use db.max_conns"},
		{"prisma+postgres://h/?api_key=hUnTeR2", "a service of Prisma's"},
		{"postgres://u:hUnTeR2@h/d?sslidentity=client.p12&sslpassword=x", "sslcert and sslkey"},
		{"postgres://u:hUnTeR2@h/d?sslcert=/ca.pem", "which Prisma calls sslcert"},
		{"postgres://u:hUnTeR2%00@h/d", "NUL"},
		{"postgres://u:hUnTeR2@h/d?connect_timeout=0", "db.connect_timeout is wrong"},
	} {
		lines := mustFail(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=" + test.url}))
		text := strings.Join(lines, "\n")
		if len(lines) != 1 || !strings.Contains(text, test.want) || !strings.Contains(text, "WRKTALK_AGENT_DB_URL") {
			t.Errorf("%s: got %q, want %q", test.url, lines, test.want)
		}
		if strings.Contains(text, hidden) {
			t.Errorf("%s: the error holds the password: %s", test.url, text)
		}
	}
}

// What drivers of other programs put into a URL is understood, or said to be
// ignored: the server would refuse the connection.
func TestURLsOfOtherDrivers(t *testing.T) {
	noLibpq(t)
	type want struct {
		path     string   // search_path
		mode, ca string   // sslmode, sslrootcert
		ignored  []string // parameters that are warned of
	}
	for u, want := range map[string]want{
		"postgres://u:p@127.0.0.1:5432/wrktalk?schema=public&connection_limit=5": {mode: "prefer", ignored: []string{"connection_limit"}},
		"postgresql://u:p@localhost/d?schema=app":                                {path: `"app"`, mode: "prefer"},
		`postgresql://u:p@localhost/d?schema=My%20"App`:                          {path: `"My ""App"`, mode: "prefer"},
		"postgresql://u:p@localhost/d?search_path=app,public":                    {path: "app,public", mode: "prefer"},
		"postgresql://u:p@localhost:6543/d?pgbouncer=true&pool_timeout=3&statement_cache_size=0&socket_timeout=9": {
			mode: "prefer", ignored: []string{"pool_timeout", "socket_timeout", "statement_cache_size"},
		},
		"postgresql://u:p@localhost/d?sslmode=require&sslaccept=accept_invalid_certs":                  {mode: "require"},
		"postgresql://u:p@localhost/d?sslmode=require&sslaccept=strict":                                {mode: "verify-full"},
		"postgresql://u:p@localhost/d?sslmode=disable&sslaccept=strict":                                {mode: "disable"},
		"postgresql://u:p@localhost/d?sslaccept=strict&sslcert=/etc/db-ca.pem":                         {mode: "verify-full", ca: "/etc/db-ca.pem"},
		"postgresql://u:p@localhost/d?sslmode=no-verify&uselibpqcompat=true":                           {mode: "require", ignored: []string{"uselibpqcompat"}},
		"postgresql+asyncpg://u:p@localhost/d?pool_size=9&max_overflow=3":                              {mode: "prefer", ignored: []string{"max_overflow", "pool_size"}},
		"postgresql://u:p@localhost/d?options=-c%20search_path%3Dapp&application_name=x&schema=public": {mode: "prefer"},
	} {
		c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=" + u}))
		if c.DB.SSLMode != want.mode || c.DB.SSLRootCert != want.ca {
			t.Errorf("%s: sslmode %s, sslrootcert %s", u, c.DB.SSLMode, c.DB.SSLRootCert)
		}
		if want.ca == "" {
			params := parse(t, c.DB.ConnString().Reveal()).RuntimeParams
			if params["search_path"] != want.path {
				t.Errorf("%s: the search_path is %q, want %q", u, params["search_path"], want.path)
			}
			for name := range driverParams {
				if _, sent := params[name]; sent {
					t.Errorf("%s: the server is told %s", u, name)
				}
			}
		}
		warnings := c.Warnings()
		for i, name := range want.ignored {
			if len(warnings) != len(want.ignored) || !strings.Contains(warnings[i], name+" is for another program's driver") {
				t.Errorf("%s: warnings %q", u, warnings)
				break
			}
		}
		if len(warnings) > len(want.ignored) {
			t.Errorf("%s: warnings %q", u, warnings)
		}
	}
}

// A password goes to a server that nobody verifies by SCRAM alone, in which the
// server proves that it knows it.
func TestRequireAuth(t *testing.T) {
	noLibpq(t)
	for _, test := range []struct {
		settings string
		want     string
		warns    bool
	}{
		{"db.host=localhost", "", false},
		{"db.host=127.0.0.1,::1,/run/postgresql", "", false},
		{"db.host=db", "scram-sha-256", true},
		{"db.host=localhost,db", "scram-sha-256", true},
		{"db.host=10.0.0.1 db.ssl_mode=require", "scram-sha-256", true},
		{"db.host=db db.ssl_mode=disable", "scram-sha-256", true},
		{"db.host=db db.ssl_mode=verify-full", "", false},
		{"db.host=db db.ssl_mode=verify-ca", "", false},
		{"db.host=db db.ssl_mode=verify-full db.require_auth=scram-sha-256", "scram-sha-256", false},
		{"db.host=db db.require_auth=md5,scram-sha-256", "md5,scram-sha-256", true},
		{"db.host=db db.require_auth=any", "", true},
		{"db.host=db db.ssl_mode=require db.ssl_cert=/c db.ssl_key=/k", "!password,!md5", true},
	} {
		c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD=p"}, strings.Fields(test.settings)...))
		got := c.DB.ConnString().Reveal()
		if !strings.Contains(got, "require_auth="+escape(test.want)+"&") {
			t.Errorf("%s: %s, want require_auth %q", test.settings, got, test.want)
		}
		if warns := strings.Contains(strings.Join(c.Warnings(), "\n"), "nothing proves"); warns != test.warns {
			t.Errorf("%s: warnings %q", test.settings, c.Warnings())
		}
	}
	c := mustLoad(t, source(t, []string{docker}, "db.host=db"))
	if got := parse(t, c.DB.ConnString().Reveal()).RequireAuth; got != "!password,!md5" {
		t.Errorf("without a password, %q is required", got)
	}
	c = mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL=postgres://u:p@db/d?require_auth=md5"}))
	if got := parse(t, c.DB.ConnString().Reveal()).RequireAuth; got != "md5" {
		t.Errorf("the URL asks for md5, and %q is required", got)
	}
}

func TestURLAndPartsExclude(t *testing.T) {
	const u = "WRKTALK_AGENT_DB_URL=postgres://u:hUnTeR2@h/d?sslmode=require"
	got := mustFail(t, source(t, []string{docker, u, "WRKTALK_AGENT_DB_PASSWORD=hUnTeR2"}, "db.host=x"))
	want := []string{"db.url (environment WRKTALK_AGENT_DB_URL) and db.host (flag), db.password (environment WRKTALK_AGENT_DB_PASSWORD) both say where the database is: keep one"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
	got = mustFail(t, source(t, []string{docker, u}, "db.ssl_mode=prefer"))
	want = []string{"db.url (environment WRKTALK_AGENT_DB_URL) and db.ssl_mode (flag) say the same thing twice: keep one"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q", got)
	}
}

// The variables of libpq and its files in the home directory change nothing
// that we show; ~/.pgpass helps out where there is no password.
func TestLibpqEnvironmentChangesNothing(t *testing.T) {
	noLibpq(t)
	c := mustLoad(t, source(t, []string{docker}))
	conn := c.DB.ConnString().Reveal()
	want := placeOf(parse(t, conn))

	for name, value := range map[string]string{
		"PGHOST": "elsewhere", "PGPORT": "1", "PGDATABASE": "other", "PGUSER": "other", "PGPASSWORD": "other",
		"PGSSLMODE": "verify-full", "PGSSLROOTCERT": "/none", "PGSSLCERT": "/none", "PGSSLKEY": "/none",
		"PGSSLPASSWORD": "x", "PGSSLNEGOTIATION": "direct", "PGSSLSNI": "0", "PGSSLCERTMODE": "require",
		"PGTARGETSESSIONATTRS": "standby", "PGCONNECT_TIMEOUT": "77", "PGCHANNELBINDING": "require",
		"PGREQUIREAUTH": "none", "PGMINPROTOCOLVERSION": "3.2",
	} {
		t.Setenv(name, value)
	}
	home := os.Getenv("HOME")
	if err := os.MkdirAll(filepath.Join(home, ".postgresql"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(home, ".postgresql", "root.crt"), []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	got := parse(t, conn)
	if p := placeOf(got); !reflect.DeepEqual(p, want) {
		t.Errorf("the environment changed the connection:\n got %+v\nwant %+v", p, want)
	}
	if got.RequireAuth != "" || got.MinProtocolVersion != "3.0" || got.SSLCertMode != "allow" {
		t.Errorf("the environment got through: %q %q %q", got.RequireAuth, got.MinProtocolVersion, got.SSLCertMode)
	}

	if err := os.WriteFile(filepath.Join(home, ".pgpass"), []byte("*:*:*:*:from pgpass\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := parse(t, conn).Password; got != "from pgpass" {
		t.Errorf("~/.pgpass not consulted: %q", got)
	}
	c = mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD=ours"}))
	if got := parse(t, c.DB.ConnString().Reveal()).Password; got != "ours" {
		t.Errorf("~/.pgpass beats the configured password: %q", got)
	}
}

func TestConnectTimeoutIsWholeSeconds(t *testing.T) {
	noLibpq(t)
	for text, want := range map[string]time.Duration{"1ms": time.Second, "1500ms": 2 * time.Second, "3": 3 * time.Second} {
		c := mustLoad(t, source(t, []string{docker}, "db.connect_timeout="+text))
		if got := parse(t, c.DB.ConnString().Reveal()).ConnectTimeout; got != want {
			t.Errorf("%s became %v, want %v", text, got, want)
		}
	}
}
