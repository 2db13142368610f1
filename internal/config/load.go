package config

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
)

// The sources that are one word; the others name a variable or a file.
const (
	sourceDefault = "default"
	sourceFlag    = "flag"
)

// systemFile is the configuration file that is read when none is named.
const systemFile = "/etc/wrktalk-agent/config.toml"

// Source is where Load looks. It is all Load looks at, apart from the files
// that these values name.
type Source struct {
	// File is the path given with --config; it must exist. Without it,
	// WRKTALK_AGENT_CONFIG names the file, and without that systemFile is read
	// if it exists.
	File string
	// Environ is the environment in the form of os.Environ.
	Environ []string
	// Sets are the section.key=value pairs given with --set; of two for one
	// key, the later wins. Secrets are refused: arguments are public.
	Sets []string
	// Euid is the effective user id; it decides where state lives.
	Euid int
	// systemFile replaces the constant of that name, in tests; "" does not.
	systemFile string
	// systemCredentials does the same for that constant.
	systemCredentials string
}

// Load resolves and validates the configuration. Its error joins every problem
// found, one line each, none of which holds a secret.
func Load(src Source) (*Config, error) {
	l := &loader{src: src, env: environment(src.Environ), found: map[string]entry{}}

	// In rising order of precedence: each replaces what those before it found.
	l.readCredentials()
	l.readFile()
	l.readEnvironment()
	l.readFlags()

	c := &Config{File: l.file}
	var err error
	if c.StateDir, err = l.stateDir(); err != nil {
		l.report("%w", err)
	}
	if c.RuntimeDir, err = l.runtimeDir(); err != nil {
		l.report("%w", err)
	}
	if _, ok := l.found["agent.deployment_type"]; !ok && l.fileBroken {
		// The file may well hold it; Load fails anyway, and says why.
		l.found["agent.deployment_type"] = entry{newSecret(string(platform.Types()[0])), sourceDefault}
	}
	for _, k := range keys {
		e, ok := l.found[k.name]
		if !ok {
			e = entry{newSecret(k.def), sourceDefault}
		}
		c.entries = append(c.entries, e)
	}
	l.problems = append(l.problems, c.checkSingleDatabase()...)
	l.problems = append(l.problems, c.resolve()...)
	if len(l.problems) > 0 {
		return nil, errors.Join(l.problems...)
	}
	l.warnLibpq(c)
	c.warnings = slices.Concat(l.warnings, c.urlWarnings(), c.unverified())
	return c, nil
}

// loader collects what the sources say.
type loader struct {
	src        Source
	env        map[string]string
	file       string
	fileBroken bool // could not be read or is no TOML
	found      map[string]entry
	problems   []error
	warnings   []string
}

func (l *loader) report(format string, args ...any) {
	l.problems = append(l.problems, fmt.Errorf(format, args...))
}

func (l *loader) warn(format string, args ...any) {
	l.warnings = append(l.warnings, fmt.Sprintf(format, args...))
}

func (l *loader) readFlags() {
	for _, pair := range l.src.Sets {
		name, value, ok := strings.Cut(pair, "=")
		name = strings.TrimSpace(name)
		if !ok {
			// Not shown: it may be a secret that lost its key.
			l.report("--set wants section.key=value")
			continue
		}
		i := lookup(name)
		switch {
		case isAddress(pair) && i < 0:
			l.report("--set wants section.key=value, not an address; for the database's, set %s", keys[mustLookup("db.url")].vars()[0])
		case i < 0:
			l.report("--set %s: there is no such key%s", name, suggestKey(name))
		case keys[i].kind == kindSecret:
			l.report("--set %s: arguments are visible to every user of the machine: use %s, or %s to name a file",
				name, keys[i].vars()[0], keys[i].fileVar())
		default:
			l.found[name] = entry{newSecret(value), sourceFlag}
		}
	}
}

// checkSingleDatabase refuses a database that is described twice. It looks at
// sources, so it belongs to Load; a snapshot has been through it.
func (c *Config) checkSingleDatabase() []error {
	if c.entries[mustLookup("db.url")].text.Empty() || c.source("db.url") == sourceDefault {
		return nil
	}
	var parts []string
	for _, name := range dbParts {
		if e := c.entries[mustLookup(name)]; e.source != sourceDefault && !e.text.Empty() {
			parts = append(parts, fmt.Sprintf("%s (%s)", name, e.source))
		}
	}
	if len(parts) == 0 {
		return nil
	}
	return []error{fmt.Errorf("db.url (%s) and %s both say where the database is: keep one",
		c.source("db.url"), strings.Join(parts, ", "))}
}

// resolve fills the fields in from the entries, and checks them.
func (c *Config) resolve() []error {
	var problems []error
	for i, k := range keys {
		e := c.entries[i]
		text := e.text.Reveal()
		if k.name == "agent.deployment_type" && strings.TrimSpace(text) == "" {
			problems = append(problems, c.notSet(k))
			continue
		}
		if err := k.set(c, text); err != nil {
			problems = append(problems, fmt.Errorf("%s: cannot use %s (%s): %w", k.name, quote(k, text), e.source, err))
		}
	}
	if c.Staging.Dir == "" {
		c.Staging.Dir = c.StateDir + "/staging"
	}
	if c.History.Dir == "" {
		c.History.Dir = c.StateDir + "/history"
	}
	if len(problems) > 0 {
		// What depends on several values says nothing new while one is wrong.
		return problems
	}
	if problems = c.applyURL(); len(problems) > 0 {
		return problems
	}
	return c.validate()
}

func (c *Config) notSet(k key) error {
	file := c.File
	if file == "" {
		file = systemFile
	}
	_, name, _ := strings.Cut(k.name, ".")
	return fmt.Errorf("%s is not set: set %s (or [%s] %s in %s) to %s", k.name, k.vars()[0], k.section(), name, file,
		oneOf(platform.Types()))
}

// isAddress reports whether text may be an address with a password in it, of
// which no message shows anything.
func isAddress(text string) bool {
	return strings.Contains(text, "://") && strings.Contains(text, "@")
}

// quote returns text as a message may show it.
func quote(k key, text string) string {
	if k.kind == kindSecret || isAddress(text) {
		return "the value"
	}
	if runes := []rune(text); len(runes) > 60 {
		text = string(runes[:60]) + "…"
	}
	return strconv.Quote(text)
}
