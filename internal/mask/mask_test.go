package mask

import (
	"bytes"
	"strings"
	"testing"
)

func TestString(t *testing.T) {
	m := New(map[string]string{
		"DB_PASSWORD":  "p@ss",
		"API_TOKEN":    "p@ss-and-more",
		"QUOTED_KEY":   `a"b\c`,
		"SHORT_KEY":    "ab",
		"FEATURE_AUTH": "true",
		"GREETING":     "hello world",
		"LEVEL":        "info",
		"PORT":         "12345678",
		"APP_VERSION":  "2026-release",
		"WEB_IMAGE":    "registry.example.org/web:1",
		"BUILD":        "v2.5.0-rc.1",
		"TLS_KEY":      "-----BEGIN KEY-----\nMIIabcdef\n-----END KEY-----\n",
		"ENCODED_PASS": "hunter2/+x",
	})
	for _, c := range []struct{ name, in, want string }{
		{"secret", "login p@ss failed", "login ${DB_PASSWORD} failed"},
		{"longest first", "p@ss-and-more", "${API_TOKEN}"},
		{"quoted", `"a\"b\\c"`, `"${QUOTED_KEY}"`},
		{"too short", "ab ab", "ab ab"},
		{"boolean", "true", "true"},
		{"other value", "say hello world", "say ${GREETING}"},
		{"short other value", "info", "info"},
		{"number", "12345678", "12345678"},
		{"version by name", "2026-release", "2026-release"},
		{"image", "pull registry.example.org/web:1", "pull registry.example.org/web:1"},
		{"version by form", "v2.5.0-rc.1", "v2.5.0-rc.1"},
		{"one line of several", "x MIIabcdef y", "x ${TLS_KEY} y"},
		{"url escaped", "?p=hunter2%2F%2Bx", "?p=${ENCODED_PASS}"},
		{"base64", "aHVudGVyMi8reA==", "${ENCODED_PASS}=="},
		{"userinfo", "postgres://bob:s3cr@t@db/x", "postgres://bob:***@db/x"},
		{"url without password", "http://db:5432/x@y", "http://db:5432/x@y"},
		{"two urls", "a://u:p@h b://v:q@h", "a://u:***@h b://v:***@h"},
	} {
		if got := m.String(c.in); got != c.want {
			t.Errorf("%s: got %q, want %q", c.name, got, c.want)
		}
	}
	var none *Masker
	if got := none.String("x://a:b@c"); got != "x://a:***@c" {
		t.Errorf("nil masker: got %q", got)
	}
}

func TestSeveralEnvs(t *testing.T) {
	m := New(map[string]string{"A_KEY": "first-value"}, map[string]string{"A_KEY": "second-value"})
	if got := m.String("first-value second-value"); got != "${A_KEY} ${A_KEY}" {
		t.Error(got)
	}
}

func TestWriter(t *testing.T) {
	const secret = "correct horse battery staple"
	m := New(map[string]string{"PHRASE_KEY": secret})
	text := "begin " + secret + " middle\nnext " + secret
	for size := 1; size <= len(text); size++ {
		var out bytes.Buffer
		w := m.Writer(&out)
		for rest := text; rest != ""; {
			n := min(size, len(rest))
			if _, err := w.Write([]byte(rest[:n])); err != nil {
				t.Fatal(err)
			}
			rest = rest[n:]
		}
		if err := w.Flush(); err != nil {
			t.Fatal(err)
		}
		if got, want := out.String(), "begin ${PHRASE_KEY} middle\nnext ${PHRASE_KEY}"; got != want {
			t.Fatalf("in pieces of %d: %q, want %q", size, got, want)
		}
	}
}

func TestWriterBoundsLines(t *testing.T) {
	const secret = "correct horse battery staple"
	m := New(map[string]string{"PHRASE_KEY": secret})
	for shift := range 2 * len(secret) { // the secret lies across the bound in every way
		var out bytes.Buffer
		w := m.Writer(&out)
		text := strings.Repeat("x", maxLine-shift) + secret + strings.Repeat("y", maxLine) + "\nafter\n"
		for _, part := range []string{text[:maxLine/2], text[maxLine/2:]} {
			if _, err := w.Write([]byte(part)); err != nil {
				t.Fatal(err)
			}
		}
		got := out.String()
		if strings.Contains(got, "corr") || strings.Contains(got, "yy") || len(got) > maxLine+100 {
			t.Fatalf("shift %d: %d bytes, ends in %q", shift, len(got), got[len(got)-100:])
		}
		if !strings.HasPrefix(got, "xxxx") || !strings.HasSuffix(got, "…\nafter\n") {
			t.Fatalf("shift %d: lost its beginning or what follows", shift)
		}
	}
}
