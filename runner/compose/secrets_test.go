package compose

import (
	"context"
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// TestSecretsInHand hides what the files of a release give away, and keeps the
// words of its sentences.
func TestSecretsInHand(t *testing.T) {
	t.Parallel()
	dir, host := t.TempDir(), filepath.Join(t.TempDir(), "host-secret")
	for path, text := range map[string]string{
		"compose.yaml": `
services:
  shop:
    image: registry.example.test/team/shop:1
    command: [serve, --token, from-the-arguments]
    env_file: app.env
    environment:
      MODE: production-like
      ADMIN_PASSWORD: shop
      STRIPE: sk_live_4eC39HqLyjWDarjtT1zdp7dc
      DATABASE_URL: postgres://app:in-the-address@db/shop
    labels: {auth.basic: "admin:$$apr1$$abc$$def"}
    healthcheck: {test: curl -H token=in-the-check http://localhost}
    secrets: [bundled, host, row]
    configs: [conf, inline]
secrets:
  bundled: {file: secret.txt}
  host: {file: ` + host + `}
  row: {environment: PIN_OF_ROW}
configs:
  conf: {file: app.conf}
  inline: {content: "api_key = inline-c0nfig-key"}
`,
		"secret.txt": "first-line-of-secret\nsecond-line-of-secret\n",
		"app.env":    "SMTP_PASSWORD=from-env-file\nGREETING=good-morning\n",
		"app.conf":   "listen 8080;\ndb_password: 'config-password'\n",
		host:         "only-on-the-host",
	} {
		if !filepath.IsAbs(path) {
			path = filepath.Join(dir, path)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	env := rowEnv{given: true, values: map[string]string{"PIN_OF_ROW": "4711"}}
	p, _, err := load(context.Background(), dir, "app", env, anyFile)
	if err != nil {
		t.Fatal(err)
	}
	report := deploy.NewReport(&strings.Builder{}, func(task.Event) {})
	report.Learn(env.values)
	learnSecrets(report, p)
	for _, secret := range []string{
		"from-the-arguments", "from-env-file", "sk_live_4eC39HqLyjWDarjtT1zdp7dc", "in-the-address", "$apr1$abc$def", "in-the-check",
		"first-line-of-secret", "second-line-of-secret", "only-on-the-host", "config-password", "inline-c0nfig-key",
		base64.StdEncoding.EncodeToString([]byte("x:from-env-file")),
	} {
		if got := report.Line("it said " + secret + " and failed"); strings.Contains(got, secret) {
			t.Errorf("%q shows: %s", secret, got)
		}
	}
	for _, open := range []string{
		"service shop of image registry.example.test/team/shop:1 in production-like says good-morning", "container app-shop-1 exited with code 4711", "listen 8080;",
	} {
		if got := report.Line(open); got != open {
			t.Errorf("%q became %q", open, got)
		}
	}
	for text, want := range map[string]string{"pin=4711": "pin=${PIN_OF_ROW}", "password: shop": "password: ${ADMIN_PASSWORD}"} {
		if got := report.Line(text); got != want {
			t.Errorf("%q became %q", text, got)
		}
	}
}
