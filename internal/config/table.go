package config

import (
	"slices"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const prefix = "WRKTALK_AGENT_"

// key is one line of the table.
type key struct {
	name    string // section.key, as TOML spells it
	def     string // the default, as one would write it
	doc     string
	binding // the field it fills, and what it accepts
}

// vars returns the environment variables that set k, the usual one first. The
// reference's variables of the [agent] section name no section.
func (k key) vars() []string {
	section, name, _ := strings.Cut(strings.ToUpper(k.name), ".")
	long := prefix + section + "_" + name
	if section == "AGENT" {
		return []string{prefix + name, long}
	}
	return []string{long}
}

// fileVar returns the variable that names a file holding k's value, "" for a
// key that is no secret.
func (k key) fileVar() string {
	if k.kind != kindSecret {
		return ""
	}
	return k.vars()[0] + "_FILE"
}

// section returns the part of k's name before the dot.
func (k key) section() string {
	section, _, _ := strings.Cut(k.name, ".")
	return section
}

// lookup returns the index of the key called name, or -1.
func lookup(name string) int {
	return slices.IndexFunc(keys, func(k key) bool { return k.name == name })
}

// mustLookup returns the index of a key that this package names itself.
func mustLookup(name string) int {
	i := lookup(name)
	if i < 0 {
		panic("config: no key " + name)
	}
	return i
}

// keys is the table.
var keys = slices.Concat(agentKeys, dbKeys, deployKeys, policyKeys, maintenanceKeys, serviceKeys, notifyKeys)

var agentKeys = []key{
	{
		"agent.deployment_type", "", "what this agent deploys to; required",
		choice(func(c *Config) *task.DeploymentType { return &c.Agent.DeploymentType }, platform.Types()...),
	},
	{
		"agent.poll_interval", "30s", "how often to look for a due task",
		duration(func(c *Config) *time.Duration { return &c.Agent.PollInterval }, 1),
	},
	{
		"agent.heartbeat_interval", "60s", "how often a task in progress says that it is alive",
		duration(func(c *Config) *time.Duration { return &c.Agent.HeartbeatInterval }, 1),
	},
	{
		"agent.lease", "5m", "how old a heartbeat may be before another agent takes the task over; at least twice the heartbeat interval, and raised to that when not set",
		duration(func(c *Config) *time.Duration { return &c.Agent.Lease }, 1),
	},
	{
		"agent.shutdown_grace", "10m", "how long a deployment in flight may go on after SIGTERM; 0 interrupts it at once; auto: as long as one may take by its own limits",
		durationOrAuto(func(c *Config) *time.Duration { return &c.Agent.ShutdownGrace }),
	},
	{
		"agent.max_attempts", "3", "how often a task is started before it is failed, when agents die in the middle of it",
		number(func(c *Config) *int { return &c.Agent.MaxAttempts }, 1, 100),
	},
	{
		"agent.max_overdue", "0s", "how long after its execute_after a task may still begin; one that is picked up later fails instead; 0: no limit",
		duration(func(c *Config) *time.Duration { return &c.Agent.MaxOverdue }, 0),
	},
}

var dbKeys = []key{
	{
		"db.url", "", "the whole address, postgres://user:password@host:port/name?sslmode=...; instead of host, port, name, user and password",
		secret(func(c *Config) *Secret { return &c.DB.URL }, checkDBURL),
	},
	{
		"db.host", "localhost", "host names, addresses or socket directories, separated by commas",
		hosts(func(c *Config) *[]string { return &c.DB.Hosts }),
	},
	{
		"db.port", "5432", "port, one for all hosts or one for each",
		ports(func(c *Config) *[]uint16 { return &c.DB.Ports }),
	},
	{
		"db.name", "wrktalk", "database name",
		text(func(c *Config) *string { return &c.DB.Name }, isName),
	},
	{
		"db.user", "postgres", "user name",
		text(func(c *Config) *string { return &c.DB.User }, isName),
	},
	{
		"db.password", "", "password; without one, ~/.pgpass is consulted",
		secret(func(c *Config) *Secret { return &c.DB.Password }, nil),
	},
	{
		"db.ssl_mode", "prefer", "TLS as libpq means it; prefer and allow may end unencrypted, only verify-full knows whom it talks to",
		choice(func(c *Config) *string { return &c.DB.SSLMode },
			"disable", "allow", "prefer", "require", "verify-ca", "verify-full"),
	},
	{
		"db.ssl_root_cert", "", "file of trusted CA certificates; empty or system: the system's (system asks for verify-full)",
		pathOr(func(c *Config) *string { return &c.DB.SSLRootCert }, "", "system"),
	},
	{
		"db.ssl_cert", "", "file of the client certificate",
		pathOr(func(c *Config) *string { return &c.DB.SSLCert }, ""),
	},
	{
		"db.ssl_key", "", "file of the client certificate's key",
		pathOr(func(c *Config) *string { return &c.DB.SSLKey }, ""),
	},
	{
		"db.require_auth", "auto", "which logins the server may ask for: any, or those of libpq separated by commas (scram-sha-256, md5, password, gss, none); auto: any on this host and where db.ssl_mode verifies the server, else passwords by scram-sha-256 alone",
		text(func(c *Config) *string { return &c.DB.RequireAuth }, isRequireAuth),
	},
	{
		"db.target_session_attrs", "auto", "which of several servers will do; auto: read-write with several hosts, else any",
		choice(func(c *Config) *string { return &c.DB.TargetSessionAttrs },
			"auto", "any", "read-write", "read-only", "primary", "standby", "prefer-standby"),
	},
	{
		"db.connect_timeout", "10s", "how long one attempt to connect may take, in whole seconds",
		duration(func(c *Config) *time.Duration { return &c.DB.ConnectTimeout }, 1),
	},
	{
		"db.max_conns", "10", "most connections of each process; idle processes hold fewer",
		// Heartbeats need a connection while an artifact streams over another.
		number(func(c *Config) *int { return &c.DB.MaxConns }, 2, 1000),
	},
}

var deployKeys = []key{
	{
		"kube.namespace", "wrktalk", "namespace of the release",
		text(func(c *Config) *string { return &c.Kube.Namespace }, isNamespace),
	},
	{
		"kube.kubeconfig", "", "kubeconfig file; empty: those of the variable KUBECONFIG, else in-cluster, else ~/.kube/config",
		pathOr(func(c *Config) *string { return &c.Kube.Kubeconfig }, ""),
	},
	{
		"kube.context", "", "context of the kubeconfig; empty: its current one",
		text(func(c *Config) *string { return &c.Kube.Context }, nil),
	},
	{
		"helm.release_name", "wrktalk", "name of the Helm release",
		text(func(c *Config) *string { return &c.Helm.ReleaseName }, isReleaseName),
	},
	{
		"helm.timeout", "10m", "how long Helm may take to bring a release up; an automatic rollback gets the same again",
		duration(func(c *Config) *time.Duration { return &c.Helm.Timeout }, 1),
	},
	{
		"helm.history_max", "10", "how many revisions Helm keeps; 0: all",
		number(func(c *Config) *int { return &c.Helm.HistoryMax }, 0, 1000),
	},
	{
		"compose.project_name", "wrktalk", "name of the Compose project",
		text(func(c *Config) *string { return &c.Compose.ProjectName }, isProjectName),
	},
	{
		"compose.working_dir", "/tmp/wrktalk", "where bundles are kept; a reboot empties the default",
		pathOr(func(c *Config) *string { return &c.Compose.WorkingDir }),
	},
	{
		"compose.timeout", "10m", "how long a release may take to come up, pull included",
		duration(func(c *Config) *time.Duration { return &c.Compose.Timeout }, 1),
	},
	{
		"compose.restore_timeout", "5m", "how long the previous release may take to come back",
		duration(func(c *Config) *time.Duration { return &c.Compose.RestoreTimeout }, 1),
	},
	{
		"compose.keep_releases", "3", "how many bundles to keep besides those in use",
		number(func(c *Config) *int { return &c.Compose.KeepReleases }, 0, 1000),
	},
	{
		"compose.settle", "300ms", "how long a container without health check must run to count as up",
		duration(func(c *Config) *time.Duration { return &c.Compose.Settle }, 0),
	},
}
