// Package mask takes secrets out of text before people, logs, mails or the
// database see it. What is secret is learned from an env file: values whose
// names look secret, and any other value long enough to give something away.
//
// Masking errs on the side of hiding: a harmless word that equals a secret is
// hidden too.
package mask

import (
	"encoding/base64"
	"encoding/json"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

const (
	minSecret = 3 // bytes of a value whose name looks secret
	minLine   = 4 // bytes of one line of such a value
	minOther  = 8 // bytes of any other value
)

// Masker replaces the secrets of one or several env files. The zero value and
// nil know none, but still hide passwords in URLs. It is safe for concurrent
// use.
type Masker struct {
	replacer *strings.Replacer
	longest  int // bytes of the longest secret
}

// New returns a Masker for the values of env: name to value. A value shows as
// ${NAME}. When several names share a value, the first in alphabetical order
// stands for it.
func New(envs ...map[string]string) *Masker {
	secrets := map[string]string{} // secret to its name
	for _, env := range envs {
		for name, value := range env {
			for _, s := range secretsOf(name, value) {
				if old, ok := secrets[s]; !ok || name < old {
					secrets[s] = name
				}
			}
		}
	}
	texts := make([]string, 0, len(secrets))
	for s := range secrets {
		texts = append(texts, s)
	}
	// The replacer tries them in this order: the longest must come first, or a
	// short secret inside a long one would leave the rest of it readable.
	slices.SortFunc(texts, func(a, b string) int {
		if len(a) != len(b) {
			return len(b) - len(a)
		}
		return strings.Compare(a, b)
	})
	m := &Masker{}
	pairs := make([]string, 0, 2*len(texts))
	for _, s := range texts {
		pairs = append(pairs, s, "${"+secrets[s]+"}")
		m.longest = max(m.longest, len(s))
	}
	if len(pairs) > 0 {
		m.replacer = strings.NewReplacer(pairs...)
	}
	return m
}

// userinfo is the password of scheme://user:password@host. It reaches to the
// last @ before a slash or blank, since passwords with an @ in them exist.
var userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"']*):[^\s/"']*@`)

// String returns s with every secret replaced.
func (m *Masker) String(s string) string {
	if m != nil && m.replacer != nil {
		s = m.replacer.Replace(s)
	}
	if strings.Contains(s, "://") {
		s = userinfo.ReplaceAllString(s, "${1}:***@")
	}
	return s
}

// Strings returns lines with every secret replaced, in a new slice.
func (m *Masker) Strings(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = m.String(l)
	}
	return out
}

// secretsOf returns what must not show of the variable name.
func secretsOf(name, value string) []string {
	secret := looksSecret(name)
	value = strings.TrimSpace(value)
	switch {
	case isBool(value):
		return nil
	case secret && len(value) >= minSecret:
	case !secret && len(value) >= minOther && !harmless(name, value):
	default:
		return nil
	}
	found := forms(value)
	if lines := strings.Split(value, "\n"); len(lines) > 1 {
		least := minOther
		if secret {
			least = minLine
		}
		for _, l := range lines {
			if l = strings.TrimSpace(l); len(l) >= least {
				found = append(found, forms(l)...)
			}
		}
	}
	return found
}

// forms returns the ways in which programs print value: as it is, quoted, in
// JSON, in a URL, in base64.
func forms(value string) []string {
	found := []string{value}
	add := func(s string) {
		if !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	quoted := strconv.Quote(value)
	add(quoted[1 : len(quoted)-1])
	if doc, err := json.Marshal(value); err == nil {
		add(string(doc[1 : len(doc)-1]))
	}
	add(url.QueryEscape(value))
	add(url.PathEscape(value))
	if len(value) >= minOther {
		add(strings.TrimRight(base64.StdEncoding.EncodeToString([]byte(value)), "="))
		add(strings.TrimRight(base64.URLEncoding.EncodeToString([]byte(value)), "="))
	}
	return found
}

var secretWords = []string{
	"PASS", "PWD", "SECRET", "TOKEN", "KEY", "CREDENTIAL", "AUTH", "DSN",
	"PRIVATE", "SALT", "CERT", "SIGNATURE", "WEBHOOK", "COOKIE", "SESSION",
}

// looksSecret reports whether the name of a variable promises a secret.
func looksSecret(name string) bool {
	name = strings.ToUpper(name)
	for _, w := range secretWords {
		if strings.Contains(name, w) {
			return true
		}
	}
	return false
}

var (
	harmlessName  = regexp.MustCompile(`(?i)(^|_)(IMAGE|TAG|VERSION)(_|$)|^COMPOSE_`)
	harmlessValue = regexp.MustCompile(`^[+-]?[0-9][0-9.,:]*[A-Za-z%]{0,3}$|^v?[0-9]+(\.[0-9A-Za-z]+)+([-+][0-9A-Za-z.-]+)?$`)
)

// harmless reports whether a value under a name that does not look secret is
// plainly fit to show: a number, a version, an image.
func harmless(name, value string) bool {
	return harmlessName.MatchString(name) || harmlessValue.MatchString(value)
}

func isBool(value string) bool {
	switch strings.ToLower(value) {
	case "true", "false", "yes", "no", "on", "off", "none", "null":
		return true
	}
	return false
}
