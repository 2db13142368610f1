package helm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
)

const rowValues = `
auth: {username: app, password: hunter22, database: app, existingSecret: my-secret,
  secretKeys: {adminPasswordKey: postgres-password, usernameKey: login, tokenKey: deadbeef00}}
image: {repository: registry.example.test/web, tag: 1.2.3}
secrets: {api: abcdefgh12345, plain: web}
tokens: [first-token-1, second-token-2]
smtp: {host: mail.example.test, apiKey: 987654321}
key: |
  -----BEGIN-----
  MIIEvQIBADANBg
  -----END-----
`

func TestSecretsOfValues(t *testing.T) {
	path := filepath.Join(t.TempDir(), "values.yaml")
	write(t, path, rowValues)
	values, err := readValues(path)
	if err != nil {
		t.Fatal(err)
	}
	m := mask.New(secretsOfValues(values))
	for _, secret := range []string{"hunter22", "abcdefgh12345", "first-token-1", "second-token-2", "987654321", "MIIEvQIBADANBg", "deadbeef00"} {
		if got := m.String("x " + secret + " y"); strings.Contains(got, secret) {
			t.Errorf("%q shows", secret)
		}
	}
	for _, open := range []string{"app", "registry.example.test/web", "1.2.3", "web", "mail.example.test", "my-secret", "postgres-password", "login"} {
		if got := m.String(open); got != open {
			t.Errorf("%q is hidden: %q", open, got)
		}
	}
}

func TestSecretsOfManifest(t *testing.T) {
	m := mask.New(secretsOfManifest(`---
apiVersion: v1
kind: Secret
stringData: {db-password: s3cret, other: long-enough-to-tell, user: web}
---
apiVersion: v1
kind: Secret
data: {token: dG9wLXNlY3JldC10b2tlbg==, other: YW5vdGhlci1sb25nLW9uZQ==}
---
apiVersion: v1
kind: ConfigMap
data: {password: not-a-secret}
`))
	for _, secret := range []string{"s3cret", "long-enough-to-tell", "top-secret-token", "dG9wLXNlY3JldC10b2tlbg==", "another-long-one"} {
		if got := m.String(secret); strings.Contains(got, secret) {
			t.Errorf("%q shows", secret)
		}
	}
	for _, open := range []string{"web", "not-a-secret"} {
		if got := m.String(open); got != open {
			t.Errorf("%q is hidden: %q", open, got)
		}
	}
}

func TestBadValues(t *testing.T) {
	dir := t.TempDir()
	for name, c := range map[string]struct{ text, want string }{
		"list":   {"- hunter22\n", "read the row's values"},
		"broken": {"password: hunter22\n  x: {", "read the row's values"},
		"scalar": {"hunter22", "read the row's values"},
		"deep":   {"a: " + strings.Repeat("[", 5000) + strings.Repeat("]", 5000), "nest deeper than"},
		"huge":   {"a: " + strings.Repeat("x", maxValues), "more than the"},
	} {
		path := filepath.Join(dir, "values.yaml")
		write(t, path, c.text)
		if _, err := readValues(path); err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "hunter") {
			t.Errorf("%s: %v", name, err)
		}
	}
	write(t, filepath.Join(dir, "empty"), "# nothing\n")
	if v, err := readValues(filepath.Join(dir, "empty")); err != nil || v == nil || len(v) != 0 {
		t.Errorf("no values: %v, %v", v, err)
	}
	if _, err := readValues(filepath.Join(dir, "missing")); !os.IsNotExist(unwrap(err)) {
		t.Errorf("no file: %v", err)
	}
}

func unwrap(err error) error {
	if u, ok := err.(interface{ Unwrap() error }); ok {
		return u.Unwrap()
	}
	return err
}
