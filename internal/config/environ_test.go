package config

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func TestVariablesAreUnique(t *testing.T) {
	seen := map[string]string{fileVariable: "the file's"}
	for _, k := range keys {
		for _, name := range append(k.vars(), k.fileVar()) {
			if name == "" {
				continue
			}
			if other, ok := seen[name]; ok {
				t.Errorf("%s belongs to %s and %s", name, other, k.name)
			}
			seen[name] = k.name
		}
	}
}

// Every key is reachable by every one of its spellings.
func TestEveryKeyFromEverywhere(t *testing.T) {
	values := map[kind]string{
		kindText: "abc", kindPath: "/abc", kindDuration: "7m", kindSize: "7MiB", kindNumber: "7",
		kindBoolean: "true", kindSecret: "abc",
	}
	special := map[string]string{
		"db.url": "postgres://[::1]/def", "db.host": "::1", "db.port": "7", "db.require_auth": "md5", "http.listen": "abc:7",
		"http.allowed_hosts":    "abc,b.c",
		"maintenance.probe_url": "http://abc/", "agent.deployment_type": "kubernetes", "db.ssl_mode": "allow",
		"db.target_session_attrs": "primary", "maintenance.mode_handler": "none", "log.level": "ERROR",
		"log.format": "json", "notify.tls": "implicit", "notify.oauth_token_url": "https://abc/token",
		"policy.allowed_paths": "/abc,/def",
	}
	for _, k := range keys {
		value, ok := special[k.name]
		if !ok {
			value = values[k.kind]
			if k.section() == "policy" {
				value = k.values[len(k.values)-1]
			}
		}
		want := value
		if k.kind == kindSecret {
			want = redacted
		}
		others := []string{
			docker, "WRKTALK_AGENT_DB_SSL_CERT=/c", "WRKTALK_AGENT_DB_SSL_KEY=/k", "WRKTALK_AGENT_NOTIFY_OAUTH_TOKEN_URL=https://x/",
			"WRKTALK_AGENT_NOTIFY_OAUTH_CLIENT_ID=x", "WRKTALK_AGENT_NOTIFY_OAUTH_CLIENT_SECRET=x",
		}
		others = slices.DeleteFunc(others, func(pair string) bool {
			name, _, _ := strings.Cut(pair, "=")
			return slices.Contains(k.vars(), name)
		})
		for _, name := range k.vars() {
			c := mustLoad(t, source(t, append(slices.Clone(others), name+"="+value)))
			if got := setting(t, c, k.name); got.Value != want || got.Source != "environment "+name {
				t.Errorf("%s=%s: got %+v", name, value, got)
			}
			if w := c.Warnings(); len(w) > 0 {
				t.Errorf("%s: warnings %q", name, w)
			}
		}
		section, key, _ := strings.Cut(k.name, ".")
		src := source(t, others)
		src.File = write(t, "c.toml", "["+section+"]\n"+key+" = '"+value+"'\n")
		if got := setting(t, mustLoad(t, src), k.name); got.Value != want || got.Source != "file "+src.File+":2" {
			t.Errorf("file: got %+v", got)
		}
	}
}

func TestUnknownVariables(t *testing.T) {
	c := mustLoad(t, source(t, []string{
		docker,
		"WRKTALK_AGENT_POL_INTERVAL=hUnTeR2",
		"WRKTALK_AGENT_DB_PASWORD=hUnTeR2",
		"WRKTALK_AGENT_S3_BUCKET=x",
		"WRKTALK_AGENT_EMPTY=",
		"WRKTALK_OTHER=x",
		// What Kubernetes sets for a Service called wrktalk-agent.
		"WRKTALK_AGENT_SERVICE_HOST=10.0.0.1", "WRKTALK_AGENT_SERVICE_PORT=9471", "WRKTALK_AGENT_SERVICE_PORT_HTTP=9471",
		"WRKTALK_AGENT_PORT=tcp://10.0.0.1:9471", "WRKTALK_AGENT_PORT_9471_TCP=tcp://10.0.0.1:9471",
		"WRKTALK_AGENT_PORT_9471_TCP_PROTO=tcp", "WRKTALK_AGENT_PORT_9471_TCP_PORT=9471", "WRKTALK_AGENT_PORT_9471_TCP_ADDR=10.0.0.1",
	}))
	want := []string{
		`WRKTALK_AGENT_POL_INTERVAL is not a variable of the agent and is ignored: did you mean "WRKTALK_AGENT_POLL_INTERVAL"?`,
		`WRKTALK_AGENT_DB_PASWORD is not a variable of the agent and is ignored: did you mean "WRKTALK_AGENT_DB_PASSWORD"?`,
		`WRKTALK_AGENT_S3_BUCKET is not a variable of the agent and is ignored`,
	}
	if got := c.Warnings(); !reflect.DeepEqual(got, want) {
		t.Errorf("warnings:\n%s", strings.Join(got, "\n"))
	}
}

// A Service called wrktalk-agent-db makes Kubernetes set db.port's variable.
func TestServiceLinkIsNoPort(t *testing.T) {
	c := mustLoad(t, source(t, []string{
		docker, "WRKTALK_AGENT_DB_PORT=tcp://10.0.0.7:5432", "WRKTALK_AGENT_DB_SERVICE_HOST=10.0.0.7",
	}))
	if got := setting(t, c, "db.port"); got.Value != "5432" || got.Source != sourceDefault {
		t.Errorf("db.port: %+v", got)
	}
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "enableServiceLinks") {
		t.Errorf("warnings: %q", w)
	}
}

func TestLibpqVariablesWarn(t *testing.T) {
	environ := []string{docker, "PGHOST=x", "PGPASSWORD=hUnTeR2", "WRKTALK_AGENT_DB_PASSWORD=y", "PGAPPNAME=z"}
	want := []string{"PGHOST is set but not used: set WRKTALK_AGENT_DB_HOST"}
	if got := mustLoad(t, source(t, environ)).Warnings(); !reflect.DeepEqual(got, want) {
		t.Errorf("warnings: %q", got)
	}
}

func TestSecretFiles(t *testing.T) {
	for content, want := range map[string]string{
		"s3cret": "s3cret", "s3cret\n": "s3cret", "s3cret\r\n": "s3cret", "s3cret\n\n": "s3cret\n", " s \n": " s ",
	} {
		path := write(t, "password", content)
		c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD_FILE=" + path}))
		if got := c.DB.Password.Reveal(); got != want {
			t.Errorf("%q became %q", content, got)
		}
		if got, want := setting(t, c, "db.password").Source, "environment WRKTALK_AGENT_DB_PASSWORD_FILE, file "+path; got != want {
			t.Errorf("source %q", got)
		}
	}
	urlFile := write(t, "url", "postgres://u:p@h/d\n")
	if c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_URL_FILE=" + urlFile})); c.DB.Address() != "h:5432/d" {
		t.Errorf("url file: %s", c.DB.Address())
	}
}

func TestBadSecretFiles(t *testing.T) {
	missing := filepath.Join(t.TempDir(), "missing")
	good := write(t, "good", "hUnTeR2")
	for _, test := range []struct {
		path, want string
		more       []string
	}{
		{missing, "open " + missing + ": no such file", nil},
		{t.TempDir(), "is a directory", nil},
		{write(t, "empty", "\n"), "is empty", nil},
		{write(t, "nul", "hUnTeR2\x00"), "without NUL", nil},
		{write(t, "large", "hUnTeR2"+strings.Repeat("x", maxSecretFile)), "is larger than 64KiB", nil},
		{good, "WRKTALK_AGENT_DB_PASSWORD and WRKTALK_AGENT_DB_PASSWORD_FILE are both set: keep one", []string{"WRKTALK_AGENT_DB_PASSWORD=hUnTeR2"}},
	} {
		lines := mustFail(t, source(t, append([]string{docker, "WRKTALK_AGENT_DB_PASSWORD_FILE=" + test.path}, test.more...)))
		if len(lines) != 1 || !strings.Contains(lines[0], test.want) || !strings.Contains(lines[0], "WRKTALK_AGENT_DB_PASSWORD_FILE") {
			t.Errorf("got %q, want %q", lines, test.want)
		}
		if strings.Contains(lines[0], "hUnTeR2") {
			t.Errorf("the error holds the secret: %q", lines)
		}
	}
}

func TestSystemdCredentials(t *testing.T) {
	for _, name := range []string{"db_password", "wrktalk-agent.db_password", "wrktalk-agent_db_password"} {
		path := write(t, name, "credential\n")
		dir := "CREDENTIALS_DIRECTORY=" + filepath.Dir(path)
		c := mustLoad(t, source(t, []string{docker, dir}))
		if c.DB.Password.Reveal() != "credential" || setting(t, c, "db.password").Source != "systemd credential "+name {
			t.Errorf("%s: %+v", name, setting(t, c, "db.password"))
		}
		// Anything else that sets it wins, the file included.
		c = mustLoad(t, source(t, []string{docker, dir, "WRKTALK_AGENT_DB_PASSWORD=variable"}))
		if c.DB.Password.Reveal() != "variable" {
			t.Errorf("%s beats the environment", name)
		}
		src := source(t, []string{docker, dir})
		src.File = write(t, "c.toml", "[db]\npassword = 'file'\n")
		if c = mustLoad(t, src); c.DB.Password.Reveal() != "file" {
			t.Errorf("%s beats the file", name)
		}
	}
	path := write(t, "db_url", "postgres://u@cred/d")
	if c := mustLoad(t, source(t, []string{docker, "CREDENTIALS_DIRECTORY=" + filepath.Dir(path)})); c.DB.Address() != "cred:5432/d" {
		t.Errorf("db_url: %s", c.DB.Address())
	}
}

// Who starts a command by hand, and may read what the packaged units are handed, needs
// no unit; who may not is told nothing about it.
func TestPackagedCredentials(t *testing.T) {
	path := write(t, "db_password", "credential\n")
	src := source(t, []string{docker})
	src.systemCredentials = filepath.Dir(path)
	c := mustLoad(t, src)
	if c.DB.Password.Reveal() != "credential" || setting(t, c, "db.password").Source != "credential, file "+path {
		t.Errorf("%+v", setting(t, c, "db.password"))
	}
	if !slices.Contains(c.ownPaths(), path) {
		t.Errorf("releases may have %s: %q", path, c.ownPaths())
	}
	// Systemd's own take their place.
	src.Environ = append(src.Environ, "CREDENTIALS_DIRECTORY="+t.TempDir())
	if c = mustLoad(t, src); !c.DB.Password.Empty() {
		t.Errorf("beside a unit's credentials: %+v", setting(t, c, "db.password"))
	}
}

// As for os.Getenv, which the libraries we use ask.
func TestFirstOfTwoVariablesCounts(t *testing.T) {
	c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_NAME=first", "WRKTALK_AGENT_DB_NAME=second"}))
	if c.DB.Name != "first" {
		t.Errorf("name = %q", c.DB.Name)
	}
}

func TestDirectories(t *testing.T) {
	for _, test := range []struct {
		name           string
		euid           int
		environ        []string
		state, runtime string
	}{
		{"root", 0, nil, "/var/lib/wrktalk-agent", "/run/wrktalk-agent"},
		{"root with home", 0, []string{"HOME=/root", "XDG_STATE_HOME=/x"}, "/var/lib/wrktalk-agent", "/run/wrktalk-agent"},
		{"systemd", 7, []string{"STATE_DIRECTORY=/s/a:/s/b", "RUNTIME_DIRECTORY=/r/a:/r/b"}, "/s/a", "/r/a"},
		{"user", 7, []string{"HOME=/home/u"}, "/home/u/.local/state/wrktalk-agent", "/tmp/wrktalk-agent-7"},
		{"xdg", 7, []string{"HOME=/home/u", "XDG_STATE_HOME=/xs", "XDG_RUNTIME_DIR=/run/user/7"}, "/xs/wrktalk-agent", "/run/user/7/wrktalk-agent"},
		{"relative xdg", 7, []string{"HOME=/h", "XDG_STATE_HOME=xs", "TMPDIR=/t"}, "/h/.local/state/wrktalk-agent", "/t/wrktalk-agent-7"},
	} {
		src := source(t, append(test.environ, docker))
		src.Euid = test.euid
		c := mustLoad(t, src)
		if c.StateDir != test.state || c.RuntimeDir != test.runtime || c.Staging.Dir != test.state+"/staging" {
			t.Errorf("%s: %s, %s, %s", test.name, c.StateDir, c.RuntimeDir, c.Staging.Dir)
		}
	}
	src := source(t, []string{docker, "RUNTIME_DIRECTORY=r"})
	src.Euid = 7
	lines := mustFail(t, src)
	if len(lines) != 2 || !strings.Contains(lines[0], "set STATE_DIRECTORY") || !strings.Contains(lines[1], "RUNTIME_DIRECTORY") {
		t.Errorf("errors: %q", lines)
	}
}

func TestReadableSecretWarns(t *testing.T) {
	for _, test := range []struct {
		text string
		mode os.FileMode
		want bool
	}{
		{"password = 'x'", 0o644, true},
		{"password = 'x'", 0o640, false},
		{"password = ''", 0o644, false},
		{"host = '::1'", 0o644, false},
	} {
		src := source(t, []string{docker})
		src.File = write(t, "c.toml", "[db]\n"+test.text+"\n")
		if err := os.Chmod(src.File, test.mode); err != nil {
			t.Fatal(err)
		}
		if w := mustLoad(t, src).Warnings(); (len(w) == 1 && strings.Contains(w[0], src.File)) != test.want || (len(w) > 0) != test.want {
			t.Errorf("%q, %o: warnings %q", test.text, test.mode, w)
		}
	}
}
