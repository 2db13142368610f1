package config

import (
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// source returns a Source that finds nothing but what is given: variables as
// NAME=value, and --set pairs.
func source(t *testing.T, environ []string, sets ...string) Source {
	t.Helper()
	return Source{
		Environ:    environ,
		Sets:       sets,
		systemFile: filepath.Join(t.TempDir(), "none.toml"),

		systemCredentials: filepath.Join(t.TempDir(), "none"),
	}
}

const docker = "WRKTALK_AGENT_DEPLOYMENT_TYPE=docker"

func mustLoad(t *testing.T, src Source) *Config {
	t.Helper()
	c, err := Load(src)
	if err != nil {
		t.Fatalf("Load: %v", err)
	}
	return c
}

// mustFail returns the lines of Load's error.
func mustFail(t *testing.T, src Source) []string {
	t.Helper()
	c, err := Load(src)
	if err == nil {
		t.Fatalf("Load succeeded: %+v", c)
	}
	if c != nil {
		t.Errorf("Load returned a Config beside its error")
	}
	return strings.Split(err.Error(), "\n")
}

func write(t *testing.T, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func setting(t *testing.T, c *Config, name string) Setting {
	t.Helper()
	for _, s := range c.Settings() {
		if s.Key == name {
			return s
		}
	}
	t.Fatalf("no setting %s", name)
	return Setting{}
}

func TestDefaults(t *testing.T) {
	c := mustLoad(t, source(t, []string{docker}))
	got := *c
	got.entries, got.File = nil, ""
	want := Config{
		Agent: Agent{
			DeploymentType: task.DeploymentDocker, PollInterval: 30 * time.Second,
			HeartbeatInterval: time.Minute, Lease: 5 * time.Minute,
			ShutdownGrace: 10 * time.Minute, MaxAttempts: 3,
		},
		DB: DB{
			Hosts: []string{"localhost"}, Ports: []uint16{5432}, Name: "wrktalk", User: "postgres",
			SSLMode: "prefer", RequireAuth: "any", TargetSessionAttrs: "any", ConnectTimeout: 10 * time.Second, MaxConns: 10,
		},
		Kube: Kube{Namespace: "wrktalk"},
		Helm: Helm{ReleaseName: "wrktalk", Timeout: 10 * time.Minute, HistoryMax: 10},
		Compose: Compose{
			ProjectName: "wrktalk", WorkingDir: "/tmp/wrktalk", Timeout: 10 * time.Minute,
			RestoreTimeout: 5 * time.Minute, KeepReleases: 3, Settle: 300 * time.Millisecond,
		},
		Policy: Policy{Preset: policy.PresetDefault, OwnParents: policy.ParentsAsPreset},
		Maintenance: Maintenance{
			ModeHandler: "nginx", FlagFile: "/tmp/maintenance-mode", ReloadCommand: "nginx -s reload",
			HAProxySocket: "/run/haproxy/admin.sock", HAProxyBackend: "wrktalk", Drain: 5 * time.Second, Timeout: 30 * time.Second,
		},
		Staging: Staging{
			Dir: "/var/lib/wrktalk-agent/staging", MaxBytes: 4 << 30, MaxEntries: 50000, MaxDepth: 32, MaxRatio: 200,
		},
		History:  History{Dir: "/var/lib/wrktalk-agent/history", Keep: 200, MaxAge: 90 * 24 * time.Hour, MaxSize: 256 << 20},
		HTTP:     HTTP{Listen: "127.0.0.1:9471"},
		Log:      Log{Level: slog.LevelInfo, Format: "auto"},
		Notify:   Notify{MaxAge: 72 * time.Hour, TLS: "auto", Timeout: 30 * time.Second, OAuthScope: "https://outlook.office365.com/.default"},
		StateDir: "/var/lib/wrktalk-agent", RuntimeDir: "/run/wrktalk-agent",
	}
	for i := range want.Policy.Choices {
		want.Policy.Choices[i] = policy.AsPreset
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("defaults:\n got %+v\nwant %+v", got, want)
	}
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
}

// The variables of the agent in Python, as its README lists them.
func TestReferenceVariables(t *testing.T) {
	c := mustLoad(t, source(t, []string{
		"WRKTALK_AGENT_DB_HOST=db.example", "WRKTALK_AGENT_DB_PORT=5433", "WRKTALK_AGENT_DB_NAME=talk",
		"WRKTALK_AGENT_DB_USER=agent", "WRKTALK_AGENT_DB_PASSWORD=p@ss", "WRKTALK_AGENT_DB_SSL_MODE=require",
		"WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes", "WRKTALK_AGENT_KUBE_NAMESPACE=ns",
		"WRKTALK_AGENT_HELM_RELEASE_NAME=rel", "WRKTALK_AGENT_HELM_TIMEOUT=15m",
		"WRKTALK_AGENT_COMPOSE_PROJECT_NAME=proj", "WRKTALK_AGENT_COMPOSE_WORKING_DIR=/srv/wrktalk",
		"WRKTALK_AGENT_POLL_INTERVAL=45", "WRKTALK_AGENT_HEARTBEAT_INTERVAL=90",
		"WRKTALK_AGENT_MAINTENANCE_MODE_HANDLER=haproxy", "WRKTALK_AGENT_LOG_LEVEL=warning",
	}))
	for name, want := range map[string]string{
		"db.host": "db.example", "db.port": "5433", "db.name": "talk", "db.user": "agent",
		"db.password": redacted, "db.ssl_mode": "require", "agent.deployment_type": "kubernetes",
		"kube.namespace": "ns", "helm.release_name": "rel", "helm.timeout": "15m",
		"compose.project_name": "proj", "compose.working_dir": "/srv/wrktalk",
		"agent.poll_interval": "45s", "agent.heartbeat_interval": "1m30s",
		"maintenance.mode_handler": "haproxy", "log.level": "WARNING",
	} {
		if got := setting(t, c, name).Value; got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	if got := c.DB.Password.Reveal(); got != "p@ss" {
		t.Errorf("password = %q", got)
	}
	if w := c.Warnings(); len(w) != 1 || !strings.Contains(w[0], "db.ssl_mode is require: nothing proves that db.example is the database") {
		t.Errorf("warnings: %q", w)
	}
}

func TestPrecedence(t *testing.T) {
	file := write(t, "config.toml", `
[agent]
deployment_type = "kubernetes"
poll_interval = 11
heartbeat_interval = "12s"
[log]
level = "DEBUG"
`)
	src := source(t, []string{
		"WRKTALK_AGENT_CONFIG=" + file,
		"WRKTALK_AGENT_POLL_INTERVAL=21",
		"WRKTALK_AGENT_AGENT_HEARTBEAT_INTERVAL=22", // the long spelling
		"WRKTALK_AGENT_MAX_ATTEMPTS=",               // empty is unset
	}, "agent.poll_interval=31", "agent.poll_interval=32")
	c := mustLoad(t, src)
	for _, want := range []Setting{
		{Key: "agent.deployment_type", Value: "kubernetes", Source: "file " + file + ":3"},
		{Key: "agent.poll_interval", Value: "32s", Source: "flag"},
		{Key: "agent.heartbeat_interval", Value: "22s", Source: "environment WRKTALK_AGENT_AGENT_HEARTBEAT_INTERVAL"},
		{Key: "agent.max_attempts", Value: "3", Source: "default"},
		{Key: "log.level", Value: "DEBUG", Source: "file " + file + ":7"},
	} {
		got := setting(t, c, want.Key)
		if got.Doc == "" {
			t.Errorf("%s has no doc", want.Key)
		}
		got.Doc = ""
		if got != want {
			t.Errorf("got %+v, want %+v", got, want)
		}
	}
	if c.File != file {
		t.Errorf("File = %q", c.File)
	}
}

func TestConfigFileChoice(t *testing.T) {
	toml := func(level string) string {
		return write(t, "c.toml", "[agent]\ndeployment_type = 'docker'\n[log]\nlevel = '"+level+"'\n")
	}
	system, variable, flag := toml("WARNING"), toml("ERROR"), toml("CRITICAL")
	missing := filepath.Join(t.TempDir(), "missing.toml")

	src := Source{systemFile: system}
	if c := mustLoad(t, src); c.Log.Level != slog.LevelWarn {
		t.Errorf("system file not read: %v", c.Log.Level)
	}
	src.Environ = []string{"WRKTALK_AGENT_CONFIG=" + variable}
	if c := mustLoad(t, src); c.Log.Level != slog.LevelError {
		t.Errorf("file of the variable not read: %v", c.Log.Level)
	}
	src.File = flag
	if c := mustLoad(t, src); c.Log.Level != levelCritical {
		t.Errorf("file of the flag not read: %v", c.Log.Level)
	}
	for _, src := range []Source{
		{Environ: []string{docker}, File: missing},
		{Environ: []string{docker, "WRKTALK_AGENT_CONFIG=" + missing}},
		{Environ: []string{docker}, systemFile: t.TempDir()}, // there, but unreadable
	} {
		if lines := mustFail(t, src); len(lines) != 1 || !strings.Contains(lines[0], "read configuration file: ") {
			t.Errorf("errors: %q", lines)
		}
	}
}

// Each line of the error is one problem: nothing that is wrong is left untold,
// and each names its key, its source and what would be right.
func TestEveryProblemIsReported(t *testing.T) {
	file := write(t, "config.toml", `
colour = "red"
[agent]
poll_interval = "-3s"
heartbeat = "10s"
max_attempts = 1.5
[databse]
host = "x"
[log]
level = "LOUD"
[compose]
working_dir = "tmp"
settle = 0
`)
	src := source(t, []string{
		"WRKTALK_AGENT_HELM_TIMEOUT=soon",
		"WRKTALK_AGENT_STAGING_MAX_BYTES=5M",
		"WRKTALK_AGENT_POLL_INTERVAL=7", "WRKTALK_AGENT_AGENT_POLL_INTERVAL=8",
	}, "http.listen=9471", "kube.namspace=x", "nonsense")
	src.File = file
	got := mustFail(t, src)
	want := []string{
		file + `:2: there is no key "colour" outside the sections`,
		file + `:5: there is no key agent.heartbeat`,
		file + `:6: cannot use the value of agent.max_attempts: want a whole number`,
		file + `:7: there is no section [databse]: there are agent, db, kube, helm, compose, policy, maintenance, staging, history, http, log, notify`,
		`WRKTALK_AGENT_POLL_INTERVAL and WRKTALK_AGENT_AGENT_POLL_INTERVAL disagree about agent.poll_interval: keep one`,
		`--set kube.namspace: there is no such key: did you mean "kube.namespace"?`,
		`--set wants section.key=value`,
		`agent.deployment_type is not set: set WRKTALK_AGENT_DEPLOYMENT_TYPE (or [agent] deployment_type in ` + file + `) to "kubernetes" or "docker"`,
		`helm.timeout: cannot use "soon" (environment WRKTALK_AGENT_HELM_TIMEOUT): want a duration above zero, such as 30 (seconds), 30s, 10m or 1h30m`,
		`compose.working_dir: cannot use "tmp" (file ` + file + `:12): want an absolute path`,
		`staging.max_bytes: cannot use "5M" (environment WRKTALK_AGENT_STAGING_MAX_BYTES): want a size above zero, such as 1073741824 (bytes), 512MiB, 4GiB or 2GB`,
		`http.listen: cannot use "9471" (flag): want host:port such as 127.0.0.1:9471, or "off"`,
		`log.level: cannot use "LOUD" (file ` + file + `:10): want DEBUG, INFO, WARNING, ERROR or CRITICAL`,
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestBadValues(t *testing.T) {
	for _, test := range []struct{ set, want string }{
		{"agent.deployment_type=podman", `want "kubernetes" or "docker"`},
		{"agent.poll_interval=0", "want a duration above zero"},
		{"agent.poll_interval=99999999999999", "want a duration above zero"},
		{"agent.shutdown_grace=-1s", "want 0 or a duration"},
		{"agent.max_attempts=0", "want a whole number from 1"},
		{"agent.lease=119s", "agent.lease (1m59s, flag) is less than twice agent.heartbeat_interval (1m, default): raise it to 2m at least"},
		{"db.host=", "want host names"},
		{"db.host=a,,b", "want host names"},
		{"db.host=db:5433", "db.port"},
		{"db.host=user:pw@db", "want host names"},
		{"db.port=0", "want ports"},
		{"db.port=65536", "want ports"},
		{"db.port=1,2", "do not match"},
		{"db.name=", "want something"},
		{"db.name=a\nb", "want one line"},
		{"db.ssl_mode=on", `want "disable", "allow"`},
		{"db.ssl_cert=/c.pem", "db.ssl_cert and db.ssl_key belong together"},
		{"db.ssl_root_cert=ca.pem", "want an absolute path or nothing or system"},
		{"db.ssl_root_cert=system", "needs db.ssl_mode verify-full"},
		{"db.max_conns=1", "want a whole number from 2"},
		{"kube.namespace=Wrk", "lower-case"},
		{"helm.release_name=" + strings.Repeat("a", 54), "at most 53"},
		{"helm.history_max=1", "leaves no revision to roll back to"},
		{"compose.project_name=WrkTalk", "want lower-case letters"},
		{"compose.project_name=_x", "want lower-case letters"},
		{"compose.working_dir=/", "not / itself"},
		{"maintenance.mode_handler=apache", `want "nginx", "haproxy"`},
		{"maintenance.mode_handler=command", "needs both maintenance.enter_command and maintenance.leave_command"},
		{"maintenance.required=maybe", "want true or false"},
		{"maintenance.haproxy_backend=b; shutdown", "want letters"},
		{"maintenance.probe_url=ftp://x", "want an http"},
		{"maintenance.probe_url=http://u:p@x/", "without user name"},
		{"staging.max_bytes=0", "want a size above zero"},
		{"staging.max_bytes=9999999TiB", "want a size above zero"},
		{"http.listen=local host:1", "want host:port"},
		{"http.listen=:http", "want host:port"},
		{"log.format=xml", `want "auto", "text" or "json"`},
		{"notify.helo=a b", "want a host name"},
		{"db.password=x", "arguments are visible to every user of the machine: use WRKTALK_AGENT_DB_PASSWORD, or WRKTALK_AGENT_DB_PASSWORD_FILE"},
	} {
		t.Run(test.set, func(t *testing.T) {
			lines := mustFail(t, source(t, []string{docker}, test.set))
			if len(lines) != 1 || !strings.Contains(lines[0], test.want) {
				t.Errorf("got %q, want one line with %q", lines, test.want)
			}
			if name, _, _ := strings.Cut(test.set, "="); !strings.Contains(lines[0], name) {
				t.Errorf("%q does not name %s", lines[0], name)
			}
		})
	}
}

func TestGoodValues(t *testing.T) {
	for _, test := range []struct{ set, want string }{
		{"agent.deployment_type=Kubernetes", "kubernetes"},
		{"agent.poll_interval= 30 ", "30s"},
		{"agent.poll_interval=1h30m", "1h30m"},
		{"agent.shutdown_grace=0", "0s"},
		{"agent.heartbeat_interval=200ms", "200ms"},
		{"db.host=/run/postgresql", "/run/postgresql"},
		{"db.host=a, [::1] ,fe80::1%eth0", "a,::1,fe80::1%eth0"},
		{"db.ssl_mode=VERIFY-FULL", "verify-full"},
		{"compose.working_dir=/srv//w/", "/srv/w"},
		{"maintenance.required=yes", "true"},
		{"maintenance.reload_command=", ""},
		{"staging.max_bytes=1073741824", "1GiB"},
		{"staging.max_bytes=512 mib", "512MiB"},
		{"staging.max_bytes=2GB", "2GB"},
		{"staging.max_bytes=1001", "1001"},
		{"http.listen=", "off"},
		{"http.listen=OFF", "off"},
		{"http.listen=[::]:0", "[::]:0"},
		{"http.listen=:9471", ":9471"},
		{"log.level=warn", "WARNING"},
		{"log.level=Critical", "CRITICAL"},
	} {
		t.Run(test.set, func(t *testing.T) {
			name, _, _ := strings.Cut(test.set, "=")
			c := mustLoad(t, source(t, []string{docker}, test.set))
			if got := setting(t, c, name).Value; got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A heartbeat interval from the reference's days must not need a new key.
func TestDefaultLeaseFollowsHeartbeat(t *testing.T) {
	c := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_HEARTBEAT_INTERVAL=300"}))
	if c.Agent.Lease != 10*time.Minute {
		t.Errorf("lease = %v", c.Agent.Lease)
	}
}

func TestShutdownGraceFollowsTheDeployment(t *testing.T) {
	for _, test := range []struct {
		platform, sets string
		want           time.Duration
	}{
		{docker, "compose.timeout=1h", time.Hour + 5*time.Minute + 2*time.Minute},
		{"WRKTALK_AGENT_DEPLOYMENT_TYPE=kubernetes", "helm.timeout=1h", 2*time.Hour + 2*time.Minute},
	} {
		c := mustLoad(t, source(t, []string{test.platform}, test.sets, "agent.shutdown_grace=auto"))
		if c.Agent.ShutdownGrace != test.want {
			t.Errorf("%s: %v, want %v", test.platform, c.Agent.ShutdownGrace, test.want)
		}
	}
}

func TestTargetSessionAttrs(t *testing.T) {
	if c := mustLoad(t, source(t, []string{docker}, "db.host=a,b")); c.DB.TargetSessionAttrs != "read-write" {
		t.Errorf("several hosts: %q", c.DB.TargetSessionAttrs)
	}
	if c := mustLoad(t, source(t, []string{docker}, "db.host=a,b", "db.target_session_attrs=any")); c.DB.TargetSessionAttrs != "any" {
		t.Errorf("set: %q", c.DB.TargetSessionAttrs)
	}
}

// Wherever an address with a password is given, no message repeats it.
func TestNoMessageShowsAnAddressWithAPassword(t *testing.T) {
	const secret = "hunter2"
	for _, key := range []string{
		"db.host", "db.name", "db.user", "db.port", "db.ssl_mode", "db.ssl_root_cert", "maintenance.probe_url", "http.listen", "log.level", "notify.timeout",
	} {
		src := source(t, []string{docker}, key+"=https://agent:"+secret+"@db.example.com:5432/wrktalk")
		for _, line := range mustFail(t, src) {
			if strings.Contains(line, secret) || !strings.Contains(line, key) {
				t.Errorf("%s", line)
			}
		}
	}
	// The key was left out, so that the address stands in its place.
	for _, line := range mustFail(t, source(t, []string{docker}, "postgres://agent:"+secret+"@db/wrktalk?sslmode=require")) {
		if strings.Contains(line, secret) || !strings.Contains(line, "WRKTALK_AGENT_DB_URL") {
			t.Errorf("%s", line)
		}
	}
	file := write(t, "config.toml", "[agent]\ndeployment_type = \"docker\"\n[db]\nhost = \"postgres://agent:"+secret+"@db/wrktalk\"\n")
	for _, line := range mustFail(t, Source{File: file}) {
		if strings.Contains(line, secret) {
			t.Errorf("%s", line)
		}
	}
}
