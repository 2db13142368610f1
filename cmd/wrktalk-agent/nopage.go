package main

import (
	"os"
	"path/filepath"
	"syscall"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

// noPage is what is said where the default handler can do nothing.
const noPage = "no maintenance page is put up: there is neither nginx nor a shell here; set maintenance.mode_handler to haproxy with maintenance.haproxy_socket to switch a page elsewhere, or to none"

// maintenanceHandler returns the handler in use: what is configured, or none where the
// default was left and can do nothing.
func maintenanceHandler(cfg *config.Config) string {
	if maintenanceHint(cfg) != "" {
		return maintenance.HandlerNone
	}
	return cfg.Maintenance.ModeHandler
}

// maintenanceHint says why no page is put up although nobody chose that, "" where one
// is. The default handler reloads nginx through the shell. In a container that has
// none, each release would be said to have gone without its page. A flag file that
// somebody mounted, or named, is looked at by an nginx elsewhere.
func maintenanceHint(cfg *config.Config) string {
	for _, key := range []string{
		"maintenance.mode_handler", "maintenance.flag_file", "maintenance.reload_command", "maintenance.probe_url",
	} {
		if !cfg.IsDefault(key) {
			return ""
		}
	}
	if _, err := os.Stat("/bin/sh"); err == nil || cfg.Maintenance.Required || isMounted(filepath.Dir(cfg.Maintenance.FlagFile)) {
		return ""
	}
	return noPage
}

// isMounted reports whether dir lies on another file system than the root directory.
func isMounted(dir string) bool {
	var root, st syscall.Stat_t
	return syscall.Stat("/", &root) == nil && syscall.Stat(dir, &st) == nil && st.Dev != root.Dev
}
