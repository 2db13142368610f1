package config

import (
	"log/slog"
	"time"
)

var maintenanceKeys = []key{
	{
		"maintenance.mode_handler", "nginx", "what shows the maintenance page",
		choice(func(c *Config) *string { return &c.Maintenance.ModeHandler },
			"nginx", "haproxy", "command", "none"),
	},
	{
		"maintenance.flag_file", "/tmp/maintenance-mode", "file whose presence nginx takes for maintenance",
		pathOr(func(c *Config) *string { return &c.Maintenance.FlagFile }),
	},
	{
		"maintenance.required", "false", "true: a deployment fails when maintenance cannot be entered; false: it goes on and says so",
		boolean(func(c *Config) *bool { return &c.Maintenance.Required }),
	},
	{
		"maintenance.reload_command", "nginx -s reload", "command that makes nginx read its configuration again; empty: none",
		text(func(c *Config) *string { return &c.Maintenance.ReloadCommand }, nil),
	},
	{
		"maintenance.enter_command", "", "command that enters maintenance, for mode_handler command",
		text(func(c *Config) *string { return &c.Maintenance.EnterCommand }, nil),
	},
	{
		"maintenance.leave_command", "", "command that leaves maintenance, for mode_handler command",
		text(func(c *Config) *string { return &c.Maintenance.LeaveCommand }, nil),
	},
	{
		"maintenance.haproxy_socket", "/run/haproxy/admin.sock", "HAProxy's stats socket, of level admin",
		pathOr(func(c *Config) *string { return &c.Maintenance.HAProxySocket }),
	},
	{
		"maintenance.haproxy_backend", "wrktalk", "HAProxy backend whose servers are put into maintenance",
		text(func(c *Config) *string { return &c.Maintenance.HAProxyBackend }, isBackendName),
	},
	{
		"maintenance.haproxy_state_file", "", "the backend's server-state-file-name, which keeps maintenance on across a reload of HAProxy; empty: none",
		pathOr(func(c *Config) *string { return &c.Maintenance.HAProxyStateFile }, ""),
	},
	{
		"maintenance.drain", "5s", "how long requests that are on their way may take once maintenance is on; at most half of maintenance.timeout",
		duration(func(c *Config) *time.Duration { return &c.Maintenance.Drain }, 0),
	},
	{
		"maintenance.probe_url", "", "address to ask whether maintenance is really on or off; empty: no probe",
		text(func(c *Config) *string { return &c.Maintenance.ProbeURL }, isProbeURL),
	},
	{
		"maintenance.timeout", "30s", "how long entering or leaving may take",
		duration(func(c *Config) *time.Duration { return &c.Maintenance.Timeout }, 1),
	},
}

var serviceKeys = []key{
	{
		"staging.dir", "", "where tasks are handed on; empty: staging below the state directory",
		pathOr(func(c *Config) *string { return &c.Staging.Dir }, ""),
	},
	{
		"staging.max_bytes", "4GiB", "most bytes an artifact may extract to",
		size(func(c *Config) *int64 { return &c.Staging.MaxBytes }),
	},
	{
		"staging.max_entries", "50000", "most files and directories an artifact may hold",
		number(func(c *Config) *int { return &c.Staging.MaxEntries }, 1, 1<<30),
	},
	{
		"staging.max_depth", "32", "most directories an artifact may nest",
		number(func(c *Config) *int { return &c.Staging.MaxDepth }, 1, 4096),
	},
	{
		"staging.max_ratio", "200", "how many times its own size an artifact may extract to",
		number(func(c *Config) *int { return &c.Staging.MaxRatio }, 1, 1<<30),
	},
	{
		"staging.keep", "0", "how many finished tasks' directories, which hold no secrets, to keep for debugging",
		number(func(c *Config) *int { return &c.Staging.Keep }, 0, 1<<20),
	},
	{
		"history.dir", "", "where outcome, timeline and log of past runs are kept; empty: history below the state directory",
		pathOr(func(c *Config) *string { return &c.History.Dir }, ""),
	},
	{
		"history.keep", "200", "how many runs are kept there; 0: none",
		number(func(c *Config) *int { return &c.History.Keep }, 0, 100_000),
	},
	{
		"history.max_age", "2160h", "how long a run is kept at most",
		duration(func(c *Config) *time.Duration { return &c.History.MaxAge }, 1),
	},
	{
		"history.max_size", "256MiB", "most bytes of all runs together; the newest is kept in any case",
		size(func(c *Config) *int64 { return &c.History.MaxSize }),
	},
	{
		"http.listen", "127.0.0.1:9471", "address of /healthz, /readyz and /metrics; off: none",
		listen(func(c *Config) *string { return &c.HTTP.Listen }),
	},
	{
		"http.allowed_hosts", "", "names by which others ask for these pages, separated by commas; addresses, localhost and the host's own name always do; *: any",
		allowedHosts(func(c *Config) *[]string { return &c.HTTP.AllowedHosts }),
	},
	{
		"log.level", "INFO", "least level that is logged, as Python names them",
		level(func(c *Config) *slog.Level { return &c.Log.Level }),
	},
	{
		"log.format", "auto", "auto: text on a terminal, else json",
		choice(func(c *Config) *string { return &c.Log.Format }, "auto", "text", "json"),
	},
}
