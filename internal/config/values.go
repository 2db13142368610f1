package config

import (
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// kind is what a key's value looks like: in the reference, and in TOML.
type kind string

const (
	kindText     kind = "text"
	kindSecret   kind = "secret"
	kindPath     kind = "path"
	kindChoice   kind = "choice"
	kindList     kind = "list"
	kindDuration kind = "duration"
	kindSize     kind = "size"
	kindNumber   kind = "number"
	kindBoolean  kind = "boolean"
)

// binding ties a key to its field of Config. The error of set says what is
// wanted and never repeats the text, which may be a secret.
type binding struct {
	kind   kind
	values []string // of a choice, for the reference
	set    func(c *Config, text string) error
	get    func(c *Config) string // as one would write it; secrets redacted
}

// bind makes a binding of a field that one text decides. Space around the text
// is dropped: env files keep what stands before a comment or a line's end.
func bind[T any](k kind, field func(*Config) *T, parse func(string) (T, error), show func(T) string) binding {
	return binding{
		kind: k,
		set: func(c *Config, text string) error {
			v, err := parse(strings.TrimSpace(text))
			if err == nil {
				*field(c) = v
			}
			return err
		},
		get: func(c *Config) string { return show(*field(c)) },
	}
}

func same(s string) string { return s }

// text accepts any one line that check does not mind.
func text(field func(*Config) *string, check func(string) error) binding {
	return bind(kindText, field, func(s string) (string, error) {
		if err := oneLine(s); err != nil {
			return "", err
		}
		if check != nil {
			return s, check(s)
		}
		return s, nil
	}, same)
}

// secret accepts anything PostgreSQL can be told, spaces included.
func secret(field func(*Config) *Secret, check func(string) error) binding {
	return binding{
		kind: kindSecret,
		set: func(c *Config, text string) error {
			if strings.ContainsRune(text, 0) {
				return errors.New("want a text without NUL bytes")
			}
			if check != nil && text != "" {
				if err := check(text); err != nil {
					return err
				}
			}
			*field(c) = newSecret(text)
			return nil
		},
		get: func(c *Config) string { return field(c).String() },
	}
}

// pathOr accepts an absolute path or one of the words. Relative paths are out:
// the agent's processes need not share a working directory.
func pathOr(field func(*Config) *string, words ...string) binding {
	want := "want an absolute path"
	for _, w := range words {
		if w == "" {
			w = "nothing"
		}
		want += " or " + w
	}
	return bind(kindPath, field, func(s string) (string, error) {
		if slices.Contains(words, s) {
			return s, nil
		}
		if err := oneLine(s); err != nil {
			return "", err
		}
		if !filepath.IsAbs(s) {
			return "", errors.New(want)
		}
		s = filepath.Clean(s)
		if s == "/" {
			return "", errors.New(want + ", and not / itself")
		}
		return s, nil
	}, same)
}

// choice accepts one of the values, in any case.
func choice[T ~string](field func(*Config) *T, values ...T) binding {
	b := bind(kindChoice, field, func(s string) (T, error) {
		for _, v := range values {
			if strings.EqualFold(s, string(v)) {
				return v, nil
			}
		}
		return "", errors.New("want " + oneOf(values))
	}, func(v T) string { return string(v) })
	for _, v := range values {
		b.values = append(b.values, string(v))
	}
	return b
}

func oneOf[T ~string](values []T) string {
	quoted := make([]string, len(values))
	for i, v := range values {
		quoted[i] = strconv.Quote(string(v))
	}
	last := len(quoted) - 1
	return strings.Join(quoted[:last], ", ") + " or " + quoted[last]
}

func number(field func(*Config) *int, least, most int) binding {
	return bind(kindNumber, field, func(s string) (int, error) {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > most {
			return 0, fmt.Errorf("want a whole number from %d to %d", least, most)
		}
		return n, nil
	}, strconv.Itoa)
}

func boolean(field func(*Config) *bool) binding {
	return bind(kindBoolean, field, func(s string) (bool, error) {
		switch strings.ToLower(s) {
		case "true", "yes", "on", "1":
			return true, nil
		case "false", "no", "off", "0":
			return false, nil
		default:
			return false, errors.New("want true or false")
		}
	}, strconv.FormatBool)
}

// levels are Python's names, because the configuration of the agent in Python
// must go on working. The first of two equal ones is the name shown.
var levels = []struct {
	name  string
	level slog.Level
}{
	{"DEBUG", slog.LevelDebug},
	{"INFO", slog.LevelInfo},
	{"WARNING", slog.LevelWarn},
	{"WARN", slog.LevelWarn},
	{"ERROR", slog.LevelError},
	{"CRITICAL", levelCritical},
}

func level(field func(*Config) *slog.Level) binding {
	b := bind(kindChoice, field, func(s string) (slog.Level, error) {
		for _, l := range levels {
			if strings.EqualFold(s, l.name) {
				return l.level, nil
			}
		}
		return 0, errors.New("want DEBUG, INFO, WARNING, ERROR or CRITICAL")
	}, func(v slog.Level) string {
		for _, l := range levels {
			if l.level == v {
				return l.name
			}
		}
		return v.String()
	})
	b.values = []string{"DEBUG", "INFO", "WARNING", "ERROR", "CRITICAL"}
	return b
}

// oneLine refuses what would break a log line, a command line or a protocol.
func oneLine(s string) error {
	if !utf8.ValidString(s) {
		return errors.New("want valid UTF-8")
	}
	if strings.ContainsFunc(s, unicode.IsControl) {
		return errors.New("want one line without control characters")
	}
	return nil
}
