package mask

import (
	"regexp"
	"strings"
)

// maxPairs bounds how much of a text is searched for pairs, in bytes.
const maxPairs = 1 << 20

// pair is name=value, name: value or "name": "value", one in a line or in JSON.
var pair = regexp.MustCompile(`["']?([A-Za-z_][A-Za-z0-9_.-]*)["']?[ \t]*(?::|=>?)[ \t]*(?:"((?:[^"\\\n]|\\.)*)"|'([^'\n]*)'|([^\s"',;{}\[\]][^\n,;{}]*))`)

// Pairs returns the values in a text, a configuration file perhaps, that stand behind
// a name which promises a secret, or that look like one by themselves.
func Pairs(text string) map[string]string {
	found := map[string]string{}
	for _, m := range pair.FindAllStringSubmatch(text[:min(len(text), maxPairs)], -1) {
		name, value := m[1], strings.TrimSpace(m[2]+m[3]+m[4])
		Literal(found, name, value)
	}
	return found
}

// Arguments returns the secrets among the arguments of a program, such as
// --password=secret, --requirepass secret and addresses with a password in them.
func Arguments(args []string) map[string]string {
	found := map[string]string{}
	for i, a := range args {
		name, value, ok := strings.Cut(a, "=")
		if !ok && strings.HasPrefix(a, "-") && i+1 < len(args) {
			name, value = a, args[i+1]
		}
		Literal(found, strings.TrimLeft(name, "-"), value)
		Literal(found, "ARGUMENT", a)
	}
	return found
}

// Literal adds to found what of a value must not show that anybody may have written
// anywhere: all of it when its name promises a secret or when it looks like one, else
// the password within it, if there is one.
func Literal(found map[string]string, name, value string) {
	if value == "" {
		return
	}
	if LooksSecret(name) || looksRandom(value) {
		Add(found, name, value)
	} else if p := password(value); p != "" {
		Add(found, name+"_PASSWORD", p)
	}
}

// Add keeps value under name, or under one like it when that is taken.
func Add(found map[string]string, name, value string) {
	for found[name] != "" && found[name] != value {
		name += "'"
	}
	found[name] = value
}
