package compose

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// What is wrong with an env is said without quoting it.
func FuzzEnv(f *testing.F) {
	for _, s := range []string{"", "A=1\n", "A='x\ny'\nB=${A}", "export A=1", "A=\"unclosed canary", "=x", "\xff", "A: 1", "${A", "A=${B:-${C}}"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, err := parseEnv(text)
		if err == nil {
			return
		}
		for _, word := range strings.Fields(string(text)) {
			if len(word) > 12 && strings.Contains(err.Error(), word) {
				t.Errorf("the error quotes %q: %v", word, err)
			}
		}
	})
}

// Whatever stands in a Compose file: it is loaded or refused in one line, and no file of
// the host is mounted that it does not name.
func FuzzComposeFile(f *testing.F) {
	for _, s := range []string{
		"", "services: {web: {image: x}}", "services:\n  a: &a {image: x, volumes: ['./d:/d']}\n  b: *a\n",
		"services: {web: {image: x, env_file: ../../etc/passwd}}", "include: [../x.yaml]", "services: {web: {extends: {file: /etc/passwd, service: web}}}",
		"a: &a [x]\nb: &b [*a,*a]\nservices: {web: {image: x, command: *b}}", "services: {web: {image: '${A:?no}', provider: {type: x}}}",
		"services: {web: {build: .}}", "x: !!binary aGk=\n---\nservices: {}\n", "services: {web: {image: x, secrets: [s]}}\nsecrets: {s: {file: ./s}}",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		nothing := func(string) string { return "no file of the host" }
		p, _, err := load(context.Background(), dir, "fuzz", rowEnv{values: map[string]string{"A": "b"}}, nothing)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\r\n") {
				t.Errorf("the error is not one line: %q", err)
			}
			return
		}
		if len(p.Services) == 0 {
			t.Error("a project without services is loaded")
		}
	})
}
