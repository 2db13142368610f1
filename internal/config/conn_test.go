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
