package supervisor

import "strings"

// scrubEnv returns env without what components must not inherit: the agent's
// own settings and the database's (they may be secrets, and components get
// their configuration over the control pipe), systemd's credentials directory, and
// what systemd told the supervisor alone. What the operator's commands take from
// libpq's environment stays: the name of the password file, and options.
func scrubEnv(env []string) []string {
	kept := make([]string, 0, len(env))
	for _, e := range env {
		name, _, _ := strings.Cut(e, "=")
		if !private(name) {
			kept = append(kept, e)
		}
	}
	return kept
}

func private(name string) bool {
	switch name {
	case "PGPASSFILE", "PGOPTIONS":
		return false
	case "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID",
		"LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES":
		return true
	}
	return strings.HasPrefix(name, "WRKTALK_") || strings.HasPrefix(name, "PG")
}
