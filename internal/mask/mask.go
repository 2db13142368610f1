// Package mask takes secrets out of text before people, logs, mails or the
// database see it. What is secret is learned from names and values: those of an env
// file, of Helm values, of the environment of services. classify.go says which
// values count and where they are hidden, forms.go in which spellings.
//
// Masking errs on the side of hiding, as long as a message stays readable: what
// cannot be told from a word or a number that has nothing to do with it is hidden
// only behind a name that promises a secret.
package mask

import (
	"cmp"
	"regexp"
	"slices"
	"strings"
)

// Masker replaces secrets. The zero value and nil know none, but still hide
// passwords in URLs. It is safe for concurrent use.
type Masker struct {
	// entries are by their first bytes, the longest first: a short secret inside a
	// long one would leave the rest of it readable.
	entries map[string][]entry
	longest int // bytes of the longest secret
}

// entry is one spelling of a secret.
type entry struct {
	text  string
	name  string
	where where
}

// prefixes are by how many of its first bytes an entry is found: by as many of these
// as it has. An env may hold thousands of values that begin alike.
var prefixes = [...]int{16, 8, 3, 1}

func indexOf(text string) string {
	for _, n := range prefixes {
		if len(text) >= n {
			return text[:n]
		}
	}
	return ""
}

// New returns a Masker for the values of secrets: name to value. A value shows as
// ${NAME}. When several names share a value, the first in alphabetical order
// stands for it.
func New(secrets ...map[string]string) *Masker { return NewExcept(nil, secrets...) }

// NewExcept is New for a text in which words are common, as the names of a
// release's services and images are.
func NewExcept(words []string, secrets ...map[string]string) *Masker {
	c := classifier{found: map[string]entry{}, words: map[string]bool{}}
	for _, w := range words {
		c.words[strings.ToLower(w)] = true
	}
	for _, values := range secrets {
		for name, value := range values {
			c.learn(name, value)
		}
	}
	m := &Masker{entries: map[string][]entry{}}
	for _, e := range c.found {
		m.longest = max(m.longest, len(e.text))
		m.entries[indexOf(e.text)] = append(m.entries[indexOf(e.text)], e)
	}
	for _, list := range m.entries {
		slices.SortFunc(list, func(a, b entry) int {
			return cmp.Or(cmp.Compare(len(b.text), len(a.text)), cmp.Compare(a.text, b.text))
		})
	}
	return m
}

// userinfo is the password of scheme://user:password@host. It reaches to the
// last @ before a slash or blank, since passwords with an @ in them exist.
var userinfo = regexp.MustCompile(`([A-Za-z][A-Za-z0-9+.-]*://[^\s/:@"']*):[^\s/"']*@`)

// String returns s with every secret replaced.
func (m *Masker) String(s string) string {
	if m != nil && len(m.entries) > 0 {
		s = m.replace(s)
	}
	if strings.Contains(s, "://") {
		s = userinfo.ReplaceAllString(s, "${1}:***@")
	}
	return s
}

func (m *Masker) replace(s string) string {
	var out strings.Builder
	done := 0
	for i := 0; i < len(s); {
		e, ok := m.at(s, i)
		if !ok {
			i++
			continue
		}
		out.WriteString(s[done:i])
		out.WriteString("${" + e.name + "}")
		i += len(e.text)
		done = i
	}
	if done == 0 {
		return s
	}
	out.WriteString(s[done:])
	return out.String()
}

// at returns the longest secret that is to be hidden at s[i:].
func (m *Masker) at(s string, i int) (entry, bool) {
	for _, n := range prefixes {
		if i+n > len(s) {
			continue
		}
		for _, e := range m.entries[s[i:i+n]] {
			if strings.HasPrefix(s[i:], e.text) && e.hiddenAt(s, i) {
				return e, true
			}
		}
	}
	return entry{}, false
}

// Strings returns lines with every secret replaced, in a new slice.
func (m *Masker) Strings(lines []string) []string {
	out := make([]string, len(lines))
	for i, l := range lines {
		out[i] = m.String(l)
	}
	return out
}
