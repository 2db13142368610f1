package config

import (
	"fmt"
	"io"
	"log/slog"
)

// redacted stands for every secret that is shown.
const redacted = "[redacted]"

// Secret is a text that no log, error, JSON document or print statement shows:
// each of them says "[redacted]", or nothing when the secret is empty. The zero
// value is the empty secret.
//
// The text hides behind a pointer because fmt prints unexported fields of an
// enclosing struct without asking for their methods; all it can print of this
// one is an address. Two Secrets are therefore compared by Reveal, not by ==.
type Secret struct{ text *string }

// newSecret returns a Secret holding text.
func newSecret(text string) Secret {
	if text == "" {
		return Secret{}
	}
	return Secret{text: &text}
}

// Reveal returns the text itself. Besides Config.Snapshot it is the only way to
// get it out.
func (s Secret) Reveal() string {
	if s.text == nil {
		return ""
	}
	return *s.text
}

// Empty reports whether s holds no text.
func (s Secret) Empty() bool { return s.text == nil }

// String returns "[redacted]", or "" for the empty secret.
func (s Secret) String() string {
	if s.Empty() {
		return ""
	}
	return redacted
}

// GoString returns the same as String, for %#v.
func (s Secret) GoString() string { return s.String() }

// Format writes the same as String, whatever the verb: %x and %q show a
// Stringer's text, but %d and the like would reach for the fields.
func (s Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, s.String()) }

// MarshalJSON returns the same as String, as a JSON string.
func (s Secret) MarshalJSON() ([]byte, error) { return []byte(`"` + s.String() + `"`), nil }

// MarshalText returns the same as String.
func (s Secret) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// LogValue returns the same as String, for log/slog.
func (s Secret) LogValue() slog.Value { return slog.StringValue(s.String()) }
