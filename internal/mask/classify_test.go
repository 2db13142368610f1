package mask

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

// TestReadable keeps messages readable where a secret is a common word or a small
// number, and hides it where it is unmistakable.
func TestReadable(t *testing.T) {
	t.Parallel()
	m := NewExcept([]string{"wrktalk", "shop"}, map[string]string{
		"POSTGRES_PASSWORD": "postgres", "ADMIN_PASSWORD": "Admin", "SESSION_KEY": "8080", "PIN": "1234", "A_TOKEN": "x",
		"APP_SECRET": "wrktalk", "DB_PASSWORD": "horse", "FEATURE_AUTH": "true", "PASSWORD_KEY": "postgres-password",
		"DB_PASSWORD_FILE": "/run/secrets/db_password", "AUTH_USER": "operator", "KEYCLOAK_HOST": "keycloak-internal",
		"LONG_NUMBER_KEY": "483920", "TLS_CERT": "-----BEGIN CERTIFICATE-----\nMIIBszCCAVmgAwIBAgIUd\n-----END CERTIFICATE-----",
		"DATABASE_URL": "postgres://app:s3cr3t-pw@db/app", "DSN": "Server=db;Password=Tr0ub4dor;Timeout=3",
	})
	for _, c := range []struct{ in, want string }{
		{"image postgres:16 of service postgres", "image postgres:16 of service postgres"},
		{"POSTGRES_PASSWORD=postgres", "POSTGRES_PASSWORD=${POSTGRES_PASSWORD}"},
		{`{"password": "postgres"}`, `{"password": "${POSTGRES_PASSWORD}"}`},
		{"connect with --password postgres to postgres", "connect with --password ${POSTGRES_PASSWORD} to postgres"},
		{"user Admin is not allowed", "user Admin is not allowed"},
		{"admin_password: 'Admin'", "admin_password: '${ADMIN_PASSWORD}'"},
		{"listen on :8080, 8080 bytes", "listen on :8080, 8080 bytes"},
		{"session-key=8080", "session-key=${SESSION_KEY}"},
		{"exit code 1234", "exit code 1234"},
		{"pin 1234 is wrong", "pin ${PIN} is wrong"},
		{"token=x; x", "token=${A_TOKEN}; x"},
		{"wrktalk-web-1 of project wrktalk", "wrktalk-web-1 of project wrktalk"},
		{"secret => wrktalk", "secret => ${APP_SECRET}"},
		{"horse", "${DB_PASSWORD}"},
		{"seahorse, horses, horse-web-1, horse.example.org", "seahorse, horses, horse-web-1, horse.example.org"},
		{"redis://:horse@db", "redis://:***@db"},
		{"login as 'horse'.", "login as '${DB_PASSWORD}'."},
		{"mysql -phorse", "mysql -p${DB_PASSWORD}"},
		{"true", "true"},
		{"no key postgres-password in the secret", "no key postgres-password in the secret"},
		{"open /run/secrets/db_password", "open /run/secrets/db_password"},
		{"483920 4839201", "${LONG_NUMBER_KEY} 4839201"},
		{"-----BEGIN CERTIFICATE----- MIIBszCCAVmgAwIBAgIUd", "-----BEGIN CERTIFICATE----- ${TLS_CERT}"},
		{"authentication of s3cr3t-pw failed", "authentication of ${DATABASE_URL} failed"},
		{"Tr0ub4dor", "${DSN}"},
	} {
		if got := m.String(c.in); got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
}

func TestEncoded(t *testing.T) {
	t.Parallel()
	const secret = "corr3ct/h0rse+battery"
	m := New(map[string]string{"API_KEY": secret})
	for before := range 4 {
		for after := range 4 {
			whole := strings.Repeat("u", before) + secret + strings.Repeat("z", after)
			for _, e := range []*base64.Encoding{base64.StdEncoding, base64.URLEncoding} {
				if got := m.String("Basic " + e.EncodeToString([]byte(whole))); !strings.Contains(got, "${API_KEY}") || len(got) > 40 {
					t.Errorf("%d before, %d after: %s", before, after, got)
				}
			}
		}
	}
	for _, text := range []string{
		"corr3ct%2Fh0rse%2Bbattery", "corr3ct%2fh0rse%2bbattery", hex.EncodeToString([]byte(secret)),
		strings.ToUpper(hex.EncodeToString([]byte(secret))), base64.StdEncoding.EncodeToString([]byte("user:" + secret)),
	} {
		if got := m.String(text); !strings.Contains(got, "${API_KEY}") || strings.Contains(got, "h0rse") {
			t.Errorf("%s: %s", text, got)
		}
	}
}

func TestShapedSecret(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{
		"sk_live_4eC39HqLyjWDarjtT1zdp7dc", "ghp_16C7e42F292c6912E7710c838347Ae178B4a", "AKIAIOSFODNN7EXAMPLE",
		"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "xoxb-123-abc", "admin:$apr1$x$y", "$2y$10$abcdefgh",
		"postgres://u:p@h/d", "Server=x;Pwd=secret;", "wJalrXUtnFEMIK7MDENGbPxRfiCYEXAMPLEKEY1", "-----BEGIN PRIVATE KEY-----",
	} {
		if !ShapedSecret(secret) {
			t.Errorf("%q is not taken for a secret", secret)
		}
	}
	for _, open := range []string{
		"production", "https://example.org/a/b?c=d", "redis://cache:6379", "2026-11-28T10:00:00Z", "/var/lib/app/data",
		"registry.example.org/team/web:1.2.3", "d41d8cd98f00b204e9800998ecf8427e", "my-long-service-name-in-production", "Europe/Zurich", "a@example.org",
	} {
		if ShapedSecret(open) {
			t.Errorf("%q is taken for a secret", open)
		}
	}
}

func TestPairs(t *testing.T) {
	t.Parallel()
	m := New(Pairs(`
listen 8080;
db_password = "hunter22-db"
api:
  token: 'tok-en-42-x'
  url: http://api
{"clientSecret": "cl1ent-s", "name": "shop"}
upstream = postgres://app:in-the-url@db/x
`), Arguments([]string{"redis-server", "--requirepass", "redis-pw-1", "--maxmemory", "100mb", "--auth-token=arg-token-1"}))
	for _, secret := range []string{"hunter22-db", "tok-en-42-x", "cl1ent-s", "in-the-url", "redis-pw-1", "arg-token-1"} {
		if got := m.String("x " + secret + " y"); strings.Contains(got, secret) {
			t.Errorf("%q shows", secret)
		}
	}
	found := map[string]string{}
	Literal(found, "WORDS", "it talks to postgres://bob:other-one@db/ at night")
	if got := New(found).String("it talks to db at night with other-one"); got != "it talks to db at night with ${WORDS_PASSWORD}" {
		t.Error(got)
	}
	const open = "listen 8080; http://api shop 100mb redis-server"
	if got := m.String(open); got != open {
		t.Errorf("%q", got)
	}
}
