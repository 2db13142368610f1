package config

import (
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// What a duration or size is shown as reads back as the same.
func FuzzDuration(f *testing.F) {
	for _, s := range []string{"30", "30s", "1h30m", "72h", "10m0s", "-1", "1.5s", "9223372036", "9223372037", "", "s", "1d", "+5", "0x10", "1h0m"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, ok := parseDuration(s)
		if !ok {
			return
		}
		if again, ok := parseDuration(formatDuration(d)); !ok || again != d {
			t.Errorf("%q is %v, shown as %q, which is %v", s, d, formatDuration(d), again)
		}
	})
}

func FuzzSize(f *testing.F) {
	for _, s := range []string{"0", "1073741824", "512MiB", "4 gib", "2GB", "9223372036854775807", "8388608TiB", "8388607TiB", "-1", "1.5GiB", "5M", "", "MiB", "1000KB"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := parseSize(s)
		if !ok {
			return
		}
		if n < 0 {
			t.Errorf("%q is negative: %d", s, n)
		}
		if again, ok := parseSize(formatSize(n)); !ok || again != n {
			t.Errorf("%q is %d, shown as %q, which is %d", s, n, formatSize(n), again)
		}
	})
}

// A URL that we accept, pgx accepts in the form we hand on, with the same user,
// password and database.
func FuzzDBURL(f *testing.F) {
	for _, s := range []string{
		"postgres://u:p@h:1/d", "postgresql://h1:1,h2/d?sslmode=disable", "postgres://u:p%40@[::1]:2,b/d?a=b&c=%20",
		"postgres://", "postgres:///?host=/x&user=%27", "postgres://:p@:5/d", "postgres://u:a/b@h",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if len(s) > 2000 || strings.Contains(s, "ssl") { // those read files
			return
		}
		c, err := Load(Source{Environ: []string{docker, "WRKTALK_AGENT_DB_URL=" + s}, systemFile: "/nonexistent/config.toml"})
		if err != nil || c.DB.URL.Empty() || c.DB.ConnectTimeout > time.Hour || len(c.DB.params) > 0 {
			return
		}
		got, err := pgconn.ParseConfig(c.DB.ConnString().Reveal())
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		if got.User != c.DB.User || got.Database != c.DB.Name || got.Host != c.DB.Hosts[0] ||
			(!c.DB.Password.Empty() && got.Password != c.DB.Password.Reveal()) {
			t.Errorf("%q: user %q, database %q, host %q", s, got.User, got.Database, got.Host)
		}
	})
}
