package config

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"testing"
)

const hunter = "hUnTeR2-π"

func TestSecretShowsNothing(t *testing.T) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%t", "%20s"} {
		if got := fmt.Sprintf(verb, newSecret(hunter)); got != redacted {
			t.Errorf("%s shows %q", verb, got)
		}
		if got := fmt.Sprintf(verb, newSecret("")); got != "" {
			t.Errorf("%s shows %q of nothing", verb, got)
		}
	}
	if got := fmt.Sprint(newSecret(hunter)); got != redacted {
		t.Errorf("Sprint shows %q", got)
	}
	for secret, want := range map[string]string{hunter: `"[redacted]"`, "": `""`} {
		if got, err := json.Marshal(newSecret(secret)); err != nil || string(got) != want {
			t.Errorf("JSON: %s, %v", got, err)
		}
	}
	if got, err := newSecret(hunter).MarshalText(); err != nil || string(got) != redacted {
		t.Errorf("text: %s, %v", got, err)
	}
	if got := newSecret(hunter).Reveal(); got != hunter {
		t.Errorf("Reveal = %q", got)
	}
}

// Whatever is done with a whole Config short of Reveal and Snapshot, the
// secrets stay inside.
func TestConfigShowsNoSecret(t *testing.T) {
	environ := []string{docker, "WRKTALK_AGENT_DB_URL=postgres://u:" + escape(hunter) + "@h/d?sslpassword=" + escape(hunter)}
	c := mustLoad(t, source(t, environ))
	if c.DB.Password.Reveal() != hunter {
		t.Fatalf("password = %q", c.DB.Password.Reveal())
	}

	var out bytes.Buffer
	for _, v := range []any{c, *c, &c.DB, c.DB, c.DB.ConnString(), c.DB.params, c.entries, c.Settings(), c.Warnings(), c.DB.Address()} {
		fmt.Fprintf(&out, "%v %+v %#v %s %q %x %d\n", v, v, v, v, v, v, v)
		b, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		out.Write(b)
		slog.New(slog.NewTextHandler(&out, nil)).Info("x", "v", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("x", "v", v)
	}
	shown := out.String()
	for _, form := range []string{hunter, escape(hunter), fmt.Sprintf("%x", hunter), base64.StdEncoding.EncodeToString([]byte(hunter))} {
		if strings.Contains(strings.ToLower(shown), strings.ToLower(form)) {
			t.Errorf("the secret is shown as %q", form)
		}
	}
	if !strings.Contains(shown, redacted) {
		t.Error("nothing was redacted: the test looks at the wrong thing")
	}
}

func reload(t *testing.T, c *Config) *Config {
	t.Helper()
	line, err := c.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	got, err := LoadSnapshot(bytes.NewReader(line))
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func TestSnapshotRoundTrip(t *testing.T) {
	sources := [][]string{
		{docker},
		{docker, "WRKTALK_AGENT_DB_URL=postgres://u:p%40@a,b:7/x?application_name=y&sslmode=require"},
		{
			docker, "WRKTALK_AGENT_DB_PASSWORD=\xff\x01 '\n", "WRKTALK_AGENT_HEARTBEAT_INTERVAL=400",
			"WRKTALK_AGENT_TYPO=x", "STATE_DIRECTORY=/s", "WRKTALK_AGENT_HTTP_LISTEN=off", "WRKTALK_AGENT_STAGING_DIR=/x",
		},
	}
	for _, environ := range sources {
		c := mustLoad(t, source(t, environ))
		got := reload(t, c)
		if !reflect.DeepEqual(got, c) {
			t.Errorf("%q:\n got %+v\nwant %+v", environ, got, c)
		}
		if got.DB.ConnString().Reveal() != c.DB.ConnString().Reveal() {
			t.Errorf("%q: the connection changed", environ)
		}
	}
}

func TestSnapshotIsOneLine(t *testing.T) {
	line, err := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD=a\nb"})).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	if i := bytes.IndexByte(line, '\n'); i != len(line)-1 {
		t.Errorf("newline at %d of %d", i, len(line))
	}
}

func TestBadSnapshots(t *testing.T) {
	line, err := mustLoad(t, source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD=" + hunter})).Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	good := string(line)
	replace := func(old, with string) string {
		s := strings.Replace(good, old, with, 1)
		if s == good {
			t.Fatalf("%q not in the snapshot", old)
		}
		return s
	}
	for name, test := range map[string]struct{ text, want string }{
		"empty":     {"", "no complete line"},
		"cut":       {good[:len(good)/2], "no complete line"},
		"too large": {strings.Repeat(" ", maxSnapshot) + good, "no complete line"},
		"no JSON":   {hunter + "\n", "not JSON"},
		"version":   {replace(`"version":1`, `"version":2`), "version 2, want 1"},
		"field":     {replace(`"state_dir"`, `"state"`), "malformed"},
		"base64":    {replace(`"value":"`, `"value":"!`), "malformed"},
		"key":       {replace("agent.lease", "agent.rent"), `"agent.rent" in the place of agent.lease`},
		"directory": {replace(`"/var/lib`, `"var/lib`), "not absolute"},
		"value":     {replace(base64.StdEncoding.EncodeToString([]byte("docker")), "eA=="), "agent.deployment_type: cannot use"},
	} {
		_, err := LoadSnapshot(strings.NewReader(test.text))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q", name, err, test.want)
		} else if strings.Contains(err.Error(), "hUnTeR2") {
			t.Errorf("%s: the error holds the secret: %v", name, err)
		}
	}
}
