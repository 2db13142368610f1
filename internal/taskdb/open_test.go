package taskdb_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// odd holds every printable ASCII character and some others.
var odd = func() string {
	var b strings.Builder
	for r := ' '; r <= '~'; r++ {
		b.WriteRune(r)
	}
	return b.String() + "äß€ 密"
}()

// startSecure starts a server of its own with TLS and an odd password.
func startSecure(t *testing.T) *testenv.Postgres {
	t.Helper()
	p, err := testenv.StartPostgres(testenv.PostgresOptions{Password: odd, TLS: true, HBA: []string{
		"host all clear 127.0.0.1/32 password", "host all hashed 127.0.0.1/32 md5", "host all anyone 127.0.0.1/32 trust",
	}})
	if errors.Is(err, testenv.ErrNoPostgres) {
		testenv.Missing(t, "PostgreSQL", err)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p
}

// quote makes a value of libpq's keyword/value syntax.
func quote(s string) string {
	return "'" + strings.NewReplacer(`\`, `\\`, `'`, `\'`).Replace(s) + "'"
}

// Close does not wait until a call that hangs has ended.
func TestCloseGivesUp(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	addTask(t, db, task.KindRollback, "")
	got := mustClaim(t, db, helm)
	release := lockRow(t, raw.ConnString, got.ID)
	ended := make(chan error, 1)
	go func() { ended <- db.Heartbeat(t.Context(), got.ID, got.Token) }()
	for raw.SQL(t, "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()") == "0" {
		if len(ended) > 0 {
			t.Fatalf("the call does not hang: %v", <-ended)
		}
	}
	db.Close()
	if len(ended) > 0 {
		t.Error("it waited until the call had ended")
	}
	release()
	<-ended
}

func TestDefect17OddPasswordsAndTLS(t *testing.T) {
	t.Parallel()
	p := startSecure(t)
	dead := deadPort(t)
	base := fmt.Sprintf("user=postgres dbname=postgres password=%s connect_timeout=5", quote(odd))
	for name, test := range map[string]struct {
		conn string
		want error // nil: it works
	}{
		"url":               {p.URL("postgres"), nil},
		"keywords":          {fmt.Sprintf("%s host=127.0.0.1 port=%d sslmode=verify-full sslrootcert=%s", base, p.Port, quote(p.CAFile)), nil},
		"by name":           {fmt.Sprintf("%s host=localhost port=%d sslmode=verify-full sslrootcert=%s", base, p.Port, quote(p.CAFile)), nil},
		"several hosts":     {fmt.Sprintf("%s host=127.0.0.1,localhost port=%d,%d sslmode=verify-full sslrootcert=%s", base, dead, p.Port, quote(p.CAFile)), nil},
		"prefer":            {fmt.Sprintf("%s host=127.0.0.1 port=%d sslmode=prefer", base, p.Port), nil},
		"no TLS":            {fmt.Sprintf("%s host=127.0.0.1 port=%d sslmode=disable", base, p.Port), taskdb.ErrAuth},
		"unknown authority": {fmt.Sprintf("%s host=127.0.0.1 port=%d sslmode=verify-full", base, p.Port), taskdb.ErrTLS},
		"wrong password":    {fmt.Sprintf("user=postgres dbname=postgres password=s3cret-and-wrong host=127.0.0.1 port=%d sslmode=require", p.Port), taskdb.ErrAuth},
		"no database":       {fmt.Sprintf("%s host=127.0.0.1 port=%d sslmode=require", strings.Replace(base, "dbname=postgres", "dbname=nowhere", 1), p.Port), taskdb.ErrNoDatabase},
		"nobody listens":    {fmt.Sprintf("%s host=127.0.0.1,localhost port=%d sslmode=require", base, dead), taskdb.ErrUnreachable},
	} {
		t.Run(name, func(t *testing.T) {
			db := open(t, test.conn)
			err := db.Ping(t.Context())
			if test.want == nil {
				if err != nil {
					t.Errorf("connect: %v", err)
				}
				return
			}
			checkSafe(t, err, odd, "s3cret-and-wrong")
			if !errors.Is(err, test.want) || taskdb.Explain(err) == "" {
				t.Errorf("%v is not %q, explained as %q", err, test.want, taskdb.Explain(err))
			}
			if transient := errors.Is(err, taskdb.ErrUnreachable); taskdb.Transient(err) != transient {
				t.Errorf("%v is transient: %v", err, !transient)
			}
		})
	}
}

// checkSafe fails when an error says a secret, however it is printed, or takes
// more than a line.
func checkSafe(t *testing.T, err error, secrets ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	if strings.ContainsAny(err.Error(), "\n\t") {
		t.Errorf("an error of several lines: %q", err)
	}
	// pgx's own error would carry the whole configuration along.
	var connect *pgconn.ConnectError
	var parse *pgconn.ParseConfigError
	if errors.As(err, &connect) || errors.As(err, &parse) {
		t.Errorf("%v carries the password in its fields", err)
	}
	// Every error of the chain, printed with its fields.
	for queue := []error{err}; len(queue) > 0; queue = queue[1:] {
		for _, secret := range secrets {
			for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret)} {
				if text := fmt.Sprintf("%v %+v %#v", queue[0], queue[0], queue[0]); strings.Contains(text, form) {
					t.Errorf("%T says the secret: %s", queue[0], text)
				}
			}
		}
		switch e := queue[0].(type) {
		case interface{ Unwrap() error }:
			if next := e.Unwrap(); next != nil {
				queue = append(queue, next)
			}
		case interface{ Unwrap() []error }:
			queue = append(queue, e.Unwrap()...)
		}
	}
}

// A server that asks for less than SCRAM does not get the password where only SCRAM
// is allowed, and the error says what it asked for.
func TestPasswordsBySCRAMAlone(t *testing.T) {
	t.Parallel()
	p := startSecure(t)
	if _, err := p.SQL("postgres", `create role clear login password 's3cret'; create role anyone login;
		set password_encryption = 'md5'; create role hashed login password 's3cret'`); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct{ user, auth, says string }{
		{"clear", "scram-sha-256", "it asks for the password in clear text, and nothing proves that it is the database"},
		{"clear", "password,scram-sha-256", ""},
		{"clear", "!password,!md5", "it asks for the password in clear text"},
		{"hashed", "scram-sha-256", "set db.require_auth to md5,scram-sha-256"},
		{"hashed", "md5,scram-sha-256", ""},
		{"anyone", "scram-sha-256", "it lets the agent in without asking for the password"},
		{"anyone", "!password,!md5", ""},
	} {
		proxy := testenv.NewProxy(t, fmt.Sprintf("127.0.0.1:%d", p.Port))
		proxy.LoseReplyTo("s3cret", 1)
		db := open(t, fmt.Sprintf("user=%s password=s3cret dbname=postgres host=127.0.0.1 port=%d sslmode=disable require_auth=%s",
			test.user, proxy.Port, test.auth))
		err := db.Ping(t.Context())
		if test.says == "" {
			if err != nil && proxy.Lost() == 0 {
				t.Errorf("%+v: %v", test, err)
			}
			continue
		}
		checkSafe(t, err, "s3cret")
		if !errors.Is(err, taskdb.ErrLoginDemand) || taskdb.Transient(err) || !strings.Contains(taskdb.Explain(err), test.says) {
			t.Errorf("%+v: %v, explained as %q", test, err, taskdb.Explain(err))
		}
		if proxy.Lost() > 0 {
			t.Errorf("%+v: the password was sent", test)
		}
	}
	db := open(t, p.ConnString("postgres", "127.0.0.1", p.Port)+"&schema=public")
	if err := db.Ping(t.Context()); !errors.Is(err, taskdb.ErrParameter) || taskdb.Transient(err) {
		t.Errorf("a parameter that is none of PostgreSQL's: %v", err)
	}
}

// A session that began while the server took no writes, or whose user found no
// tables, is not used again.
func TestReadOnlySessionsAreReplaced(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	db := open(t, raw.ConnString)
	alter := "alter database " + raw.Name
	raw.SQL(t, alter+" set default_transaction_read_only = on")
	addPending := func() {
		raw.SQL(t, "set transaction read write; "+insertTask("rollback", "pending", "now()"))
	}
	addPending()
	_, err := db.Claim(t.Context(), helm, claiming)
	if !errors.Is(err, taskdb.ErrReadOnly) || !taskdb.Transient(err) || taskdb.Explain(err) == "" {
		t.Errorf("claim on a read-only database: %v", err)
	}
	raw.SQL(t, alter+" reset default_transaction_read_only")
	mustClaim(t, db, helm)
	if got := raw.SQL(t, "select count(*) from pg_stat_activity where datname = current_database() and application_name = 'test' and pid <> pg_backend_pid()"); got != "1" {
		t.Errorf("%s sessions are open", got)
	}

	raw.SQL(t, alter+" set search_path = nowhere")
	db = open(t, raw.ConnString)
	if _, err := db.Claim(t.Context(), helm, claiming); !errors.Is(err, taskdb.ErrSchema) {
		t.Errorf("claim without tables: %v", err)
	}
	raw.SQL(t, alter+" reset search_path")
	claim(t, db, helm, claiming)
}

func TestDefect17ConnectionStringsAreNeverQuoted(t *testing.T) {
	t.Parallel()
	for _, conn := range []string{
		"host=localhost password=hunter2 port=abc",
		"host=localhost password=hunter2 sslmode=maybe",
		"host=localhost password=hunter2 sslmode=verify-full sslrootcert=/no/such/file",
		"host=localhost password='hunter2",
		"postgres://user:hunter2@host:port/db",
		"postgres://user:hunter2@[::1/db",
		"postgres://user:x%zzhunter2@localhost/db",
		"host=localhost password=hunter2 default_query_exec_mode=fast",
		"host=localhost password=hunter2 pool_max_conns=x",
		"host=a,b,c port=1,2 password=hunter2",
		"password = hunter2 =",
	} {
		db, err := taskdb.Open(t.Context(), taskdb.Options{ConnString: conn})
		if err == nil {
			db.Close()
			t.Errorf("%s was accepted", conn)
			continue
		}
		checkSafe(t, err, "hunter2")
		if taskdb.Transient(err) {
			t.Errorf("%v is called transient", err)
		}
		t.Log(err)
	}
}

func deadPort(t *testing.T) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port
}

func TestOpenDoesNotConnect(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	db := open(t, through)
	proxy.Refuse(true)
	if err := db.Ping(t.Context()); !errors.Is(err, taskdb.ErrUnreachable) && !taskdb.Transient(err) {
		t.Errorf("ping of a server that is gone: %v", err)
	}
	proxy.Refuse(false)
	if proxy.Connections() != 0 {
		t.Errorf("%d connections were made", proxy.Connections())
	}
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("ping: %v", err)
	}
}

// A session looks the same whatever the server's or the role's defaults are.
func TestSessionSettings(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	raw.SQL(t, fmt.Sprintf(`alter database %s set timezone = 'Asia/Kolkata'; alter database %[1]s set datestyle = 'SQL, DMY'`, raw.Name))
	db := open(t, raw.ConnString)
	addTask(t, db, task.KindRollback, "")
	got := mustClaim(t, db, helm)
	if _, err := time.Parse("2006-01-02 15:04:05.999999-07", string(got.Token)); err != nil {
		t.Errorf("the token is %q", got.Token)
	}
	if name := raw.SQL(t, "select distinct application_name from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"); name != "test" {
		t.Errorf("the application is called %q", name)
	}
	now, err := db.Now(t.Context())
	if err != nil || time.Since(now).Abs() > time.Hour {
		t.Errorf("the database's clock says %s, %v", now, err)
	}
}

// Every mode in which pgx can send queries works, for all sorts of poolers.
func TestEveryQueryMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"exec", "cache_describe", "cache_statement", "describe_exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			for _, schema := range testenv.Schemas {
				raw := testenv.Database(t, schema)
				db := open(t, raw.ConnString+"&default_query_exec_mode="+mode)
				if err := errors.Join(db.CheckSchema(t.Context(), helm), db.Migrate(t.Context())); err != nil {
					t.Fatal(err)
				}
				data := noise(1_500_000)
				artifact := pushBytes(t, db, task.ChartHelm, "1", data)
				for range 2 {
					addTask(t, db, task.KindDeploy, artifact)
					c := claim(t, db, helm, taskdb.ClaimOptions{Lease: time.Hour, Owner: "me", Claim: true})
					if c.Task == nil {
						t.Fatalf("claimed %+v", c)
					}
					if err := db.Heartbeat(t.Context(), c.Task.ID, c.Task.Token); err != nil {
						t.Error(err)
					}
					got, err := io.ReadAll(db.Read(t.Context(), artifact, int64(len(data))))
					if err != nil || !bytes.Equal(got, data) {
						t.Errorf("read %d bytes: %v", len(got), err)
					}
					events := []task.Event{{Time: time.Now(), Component: "runner", Phase: task.PhaseApplying, Text: "x"}}
					if err := db.AppendEvents(t.Context(), c.Task.ID, c.Task.Token, events); err != nil {
						t.Error(err)
					}
					finish(t, db, c.Task, artifact, true)
				}
				if s, err := db.Status(t.Context(), helm); err != nil || s.Current == nil || len(s.Recent) != 2 {
					t.Errorf("status: %+v, %v", s, err)
				}
				if _, err := db.Tasks(t.Context(), taskdb.TaskFilter{Statuses: []task.Status{task.StatusFailed}}); err != nil {
					t.Error(err)
				}
				if _, err := db.MailSettings(t.Context(), helm); err != nil {
					t.Error(err)
				}
				if err := db.SetMaintenance(t.Context(), helm, true); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// A network that falls silent ends a call instead of holding it.
func TestSilentServerDoesNotHoldACall(t *testing.T) {
	t.Parallel()
	raw := testenv.Database(t)
	proxy, through := testenv.NewPostgresProxy(t, raw)
	db := open(t, through)
	if err := db.Ping(t.Context()); err != nil {
		t.Fatal(err)
	}
	proxy.Freeze()
	ctx, cancel := contextWithTimeout(t, 200*time.Millisecond)
	defer cancel()
	if err := db.Heartbeat(ctx, "x", "y"); err == nil || errors.Is(err, taskdb.ErrFenced) {
		t.Errorf("heartbeat into silence: %v", err)
	}
	proxy.Cut()
	proxy.Thaw()
	if err := db.Ping(t.Context()); err != nil {
		t.Errorf("after the silence: %v", err)
	}
}

// A server that says no for good is not asked for ever.
func TestTransient(t *testing.T) {
	t.Parallel()
	for code, want := range map[string]bool{
		"28P01": false, "3D000": false, "42P01": false, "42501": false, "22001": false, "23503": false,
		"57P01": true, "57P03": true, "53300": true, "40001": true, "55P03": true, "25006": true, "08006": true,
	} {
		err := fmt.Errorf("call: %w", &pgconn.PgError{Code: code, SeverityUnlocalized: "FATAL"})
		if got := taskdb.Transient(err); got != want {
			t.Errorf("an error with code %s is transient: %v", code, got)
		}
	}
}

func TestReadStopsWhenTheLoginIsRefused(t *testing.T) {
	t.Parallel()
	p := startSecure(t)
	conn := fmt.Sprintf("user=postgres dbname=postgres password=wrong host=127.0.0.1 port=%d sslmode=require", p.Port)
	if _, err := io.ReadAll(open(t, conn).Read(t.Context(), "x", 1)); !errors.Is(err, taskdb.ErrAuth) {
		t.Errorf("read: %v", err)
	}
}
