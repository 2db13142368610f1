// Package config is the agent's configuration: one table of keys, and for each
// key a value that came from a flag, the environment, a TOML file or the
// default, in this order of precedence.
//
// The table in table.go is all there is: the variables' names, the messages,
// the reference in docs/configuration.md and the check of config.example.toml
// follow from it. Adding a key is adding a line there and a field here.
//
// Load collects every problem before it gives up, so that one start of the
// agent tells all there is to mend. No message ever holds a secret's text.
package config

import (
	"log/slog"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Config is the resolved, validated configuration. Load and LoadSnapshot make
// it; nobody changes it afterwards, so it may be read from any goroutine.
type Config struct {
	Agent       Agent
	DB          DB
	Kube        Kube
	Helm        Helm
	Compose     Compose
	Policy      Policy
	Maintenance Maintenance
	Staging     Staging
	History     History
	HTTP        HTTP
	Log         Log
	Notify      Notify

	// StateDir is where what must survive a restart lives, RuntimeDir where
	// sockets and locks live. Both are absolute; neither is created here.
	// Without systemd and XDG_RUNTIME_DIR, RuntimeDir is a directory of
	// predictable name below the one for temporary files: whoever creates it
	// must refuse one that belongs to somebody else.
	StateDir, RuntimeDir string

	// File is the configuration file that was read, "" for none.
	File string

	entries []entry // one per key, in the table's order
	fromURL []string
	// urlIgnored are parameters of db.url that other programs' drivers know.
	urlIgnored []string
	warnings   []string
}

// entry is where a key's value came from. The text is a Secret for every key:
// that costs nothing and cannot be forgotten for the one that matters.
type entry struct {
	text   Secret
	source string
}

// Agent is the [agent] section.
type Agent struct {
	DeploymentType    task.DeploymentType
	PollInterval      time.Duration
	HeartbeatInterval time.Duration
	Lease             time.Duration // at least twice HeartbeatInterval
	ShutdownGrace     time.Duration // may be zero: interrupt at once
	MaxAttempts       int
	MaxOverdue        time.Duration // 0 is no limit
}

// DB is the [db] section. Where db.url was given, its parts are filled in here.
type DB struct {
	URL             Secret // as given; ConnString is what to connect with
	Hosts           []string
	Ports           []uint16 // one for all hosts, or one for each
	Name, User      string
	Password        Secret
	SSLMode         string
	SSLRootCert     string // absolute path, "system" or ""
	SSLCert, SSLKey string // absolute paths, both or neither
	// RequireAuth is which logins the server may ask for: "any", or a list of
	// libpq's. Never "auto": resolved.
	RequireAuth        string
	TargetSessionAttrs string // never "auto": resolved
	ConnectTimeout     time.Duration
	MaxConns           int // ceiling per process

	params []param // further parameters of db.url, passed on
}

// Kube is the [kube] section.
type Kube struct {
	Namespace  string
	Kubeconfig string // "" is in-cluster or the default file
	Context    string // "" is the kubeconfig's current one
}

// Helm is the [helm] section.
type Helm struct {
	ReleaseName string
	Timeout     time.Duration
	HistoryMax  int // 0 is no limit
}

// Compose is the [compose] section.
type Compose struct {
	ProjectName    string
	WorkingDir     string // absolute
	Timeout        time.Duration
	RestoreTimeout time.Duration
	KeepReleases   int
	Settle         time.Duration // may be zero
}

// Maintenance is the [maintenance] section.
type Maintenance struct {
	ModeHandler                string // nginx, haproxy, command or none
	FlagFile                   string // absolute
	Required                   bool
	ReloadCommand              string
	EnterCommand, LeaveCommand string // both set when ModeHandler is command
	HAProxySocket              string // absolute
	HAProxyBackend             string
	HAProxyStateFile           string        // absolute, "" for none
	Drain                      time.Duration // may be zero: wait for no request
	ProbeURL                   string        // "" for no probe
	Timeout                    time.Duration
}

// Staging is the [staging] section.
type Staging struct {
	Dir        string // absolute
	MaxBytes   int64
	MaxEntries int
	MaxDepth   int
	MaxRatio   int
	Keep       int // finished tasks' directories
}

// History is the [history] section.
type History struct {
	Dir     string // absolute
	Keep    int    // runs; 0 for none
	MaxAge  time.Duration
	MaxSize int64 // bytes
}

// HTTP is the [http] section.
type HTTP struct {
	Listen       string   // host:port, "" for off
	AllowedHosts []string // names in requests for it, "*" for any
}

// levelCritical is what Python calls CRITICAL: above slog.LevelError.
const levelCritical = slog.Level(12)

// Log is the [log] section.
type Log struct {
	Level  slog.Level
	Format string // text, json or auto: text on a terminal, else json
}

// Warnings returns what is odd about the configuration without being wrong:
// one line each, for the log at start and for `check`.
func (c *Config) Warnings() []string { return slices.Clone(c.warnings) }

// IsDefault reports whether nobody has set the key called name, which must exist.
func (c *Config) IsDefault(name string) bool { return c.source(name) == sourceDefault }

// Setting is one key as `wrktalk-agent config` shows it.
type Setting struct {
	Key    string `json:"key"`
	Value  string `json:"value"`  // "[redacted]" for a secret that is set
	Source string `json:"source"` // "default", "environment NAME", "file PATH:LINE", "flag", ...
	Doc    string `json:"doc"`
}

// Settings returns every key in the table's order, with the value in use and
// where it came from. Secrets are redacted.
func (c *Config) Settings() []Setting {
	settings := make([]Setting, len(keys))
	for i, k := range keys {
		s := Setting{Key: k.name, Value: k.get(c), Source: c.entries[i].source, Doc: k.doc}
		if slices.Contains(c.fromURL, k.name) {
			s.Source = "db.url"
		}
		settings[i] = s
	}
	return settings
}
