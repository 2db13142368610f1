package config

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// fileVariable names the configuration file when --config does not.
const fileVariable = prefix + "CONFIG"

// maxSecretFile is the largest file a secret is read from, in bytes.
const maxSecretFile = 64 << 10

// environment returns environ as a map. Of two for one name the first counts,
// as for os.Getenv; an empty one counts as unset.
func environment(environ []string) map[string]string {
	env := make(map[string]string, len(environ))
	for _, pair := range environ {
		name, value, ok := strings.Cut(pair, "=")
		if _, seen := env[name]; ok && !seen {
			env[name] = value
		}
	}
	return env
}

// readEnvironment takes the keys' variables, and warns of those that look like
// ours and are not.
func (l *loader) readEnvironment() {
	known := []string{fileVariable}
	for _, k := range keys {
		known = append(known, k.vars()...)
		if k.fileVar() != "" {
			known = append(known, k.fileVar())
		}

		var from string
		for _, name := range k.vars() {
			value := l.env[name]
			switch {
			case value == "":
			case k.name == "db.port" && l.isServiceLink(name):
				l.warn("%s is Kubernetes' link to a Service and is ignored: set enableServiceLinks: false in the pod, or call the Service something else", name)
			case from == "":
				from = name
				l.found[k.name] = entry{newSecret(value), "environment " + name}
			case value != l.env[from]:
				l.report("%s and %s disagree about %s: keep one", from, name, k.name)
			}
		}
		if k.fileVar() != "" {
			l.readSecretFile(k, from)
		}
	}

	for _, pair := range l.src.Environ {
		name, _, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, prefix) || l.env[name] == "" || slices.Contains(known, name) || l.isServiceLink(name) {
			continue
		}
		w := fmt.Sprintf("%s is not a variable of the agent and is ignored%s", name, suggest(name, known))
		if !slices.Contains(l.warnings, w) {
			l.warnings = append(l.warnings, w)
		}
	}
}

// readSecretFile reads the file that k's _FILE variable names. set is the
// variable that holds k's value itself, "" for none.
func (l *loader) readSecretFile(k key, set string) {
	name := k.fileVar()
	path := l.env[name]
	if path == "" {
		return
	}
	if set != "" {
		l.report("%s and %s are both set: keep one", set, name)
		return
	}
	text, err := readSecret(path)
	if err != nil {
		l.report("%s: %w", name, err)
		return
	}
	l.found[k.name] = entry{newSecret(text), fmt.Sprintf("environment %s, file %s", name, path)}
}

// readSecret returns the file's content less one newline at its end. Its errors
// name the path and never hold content.
func readSecret(path string) (string, error) {
	b, _, err := readFile(path, maxSecretFile)
	if err != nil {
		return "", err
	}
	if len(b) > maxSecretFile {
		return "", fmt.Errorf("%s is larger than %s: want a file that holds the secret alone", path, formatSize(maxSecretFile))
	}
	if trimmed, ok := bytes.CutSuffix(b, []byte("\n")); ok {
		b = bytes.TrimSuffix(trimmed, []byte("\r"))
	}
	if len(b) == 0 {
		return "", fmt.Errorf("%s is empty", path)
	}
	return string(b), nil
}

// systemCredentials is the directory that the packaged units load credentials from.
// What root starts by hand reads it itself, so that it needs no unit to reach the
// database.
const systemCredentials = "/etc/wrktalk-agent/credentials"

// readCredentials takes the secrets that systemd hands over as credentials
// (LoadCredential=, SetCredentialEncrypted=). Without any, those that the packaged
// units would hand over count, as far as this user may read them.
func (l *loader) readCredentials() {
	dir, handed := l.env["CREDENTIALS_DIRECTORY"], true
	if dir == "" {
		dir, handed = cmp.Or(l.src.systemCredentials, systemCredentials), false
	}
	for _, k := range keys {
		if k.kind != kindSecret {
			continue
		}
		base := strings.ReplaceAll(k.name, ".", "_")
		// The last is how systemd calls a file of a directory that it loads whole.
		for _, name := range []string{base, programName + "." + base, programName + "_" + base} {
			path, source := filepath.Join(dir, name), "systemd credential "+name
			if !handed {
				source = "credential, file " + path
			}
			text, err := readSecret(path)
			if errors.Is(err, fs.ErrNotExist) || !handed && errors.Is(err, fs.ErrPermission) {
				continue
			}
			if err != nil {
				l.report("%s: %w", source, err)
				continue
			}
			if _, ok := l.found[k.name]; !ok {
				l.found[k.name] = entry{newSecret(text), source}
			}
		}
	}
}

// Kubernetes gives every pod variables for every Service of its namespace. For
// a Service called wrktalk-agent they begin like ours, and for one called
// wrktalk-agent-db one of them is called exactly like db.port's.
var (
	serviceName = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)$`)
	servicePort = regexp.MustCompile(`^(tcp|udp|sctp)://[^/]+:[0-9]+$`)
)

// isServiceLink reports whether the variable called name is one of those.
func (l *loader) isServiceLink(name string) bool {
	return serviceName.MatchString(name) ||
		strings.HasSuffix(name, "_PORT") && servicePort.MatchString(l.env[name])
}

// warnLibpq tells users of libpq that their variables mean nothing here, where
// it looks as though they rely on one.
func (l *loader) warnLibpq(c *Config) {
	for _, v := range []struct{ name, key string }{
		{"PGHOST", "db.host"},
		{"PGPORT", "db.port"},
		{"PGDATABASE", "db.name"},
		{"PGUSER", "db.user"},
		{"PGPASSWORD", "db.password"},
		{"PGSSLMODE", "db.ssl_mode"},
	} {
		if l.env[v.name] != "" && c.source(v.key) == sourceDefault && c.DB.URL.Empty() {
			l.warn("%s is set but not used: set %s", v.name, keys[mustLookup(v.key)].vars()[0])
		}
	}
}
