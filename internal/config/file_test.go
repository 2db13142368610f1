package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestTOMLTypes(t *testing.T) {
	src := source(t, nil)
	src.File = write(t, "c.toml", `
agent.deployment_type = "docker"
agent.poll_interval = 1_0
[db]
host = ["a", "b"]
port = [1, 2]
[staging]
max_bytes = 1048576
max_depth = "9"
[maintenance]
required = true
`)
	c := mustLoad(t, src)
	for name, want := range map[string]string{
		"agent.poll_interval": "10s", "db.host": "a,b", "db.port": "1,2", "staging.max_bytes": "1MiB",
		"staging.max_depth": "9", "maintenance.required": "true",
	} {
		if got := setting(t, c, name).Value; got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
}

func TestTOMLProblems(t *testing.T) {
	for _, test := range []struct{ text, want string }{
		{"poll_interval = 3", `:1: there is no key "poll_interval" outside the sections: did you mean "agent.poll_interval"?`},
		{"\n[agents]\nx = 1\ny = 2", `:2: there is no section [agents]: did you mean "agent"?`},
		{"[db]\n\nhst = 'x'", `:3: there is no key db.hst: did you mean "db.host"?`},
		{"[db]\nHost = 'x'", `:2: there is no key db.Host: did you mean "db.host"?`},
		{"[db]\npoll_interval = 'x'", `:2: there is no key db.poll_interval: did you mean "agent.poll_interval"?`},
		{"[db.pool]\nmax = 1", `:1: there is no key db.pool`},
		{"[[db]]\nhost = 'x'", `there is no key "db" outside the sections`},
		{"[db]\npassword = 123456", `:2: cannot use the value of db.password: want text in quotes`},
		{"[db]\nhost = [['x']]", `:2: cannot use the value of db.host: want text in quotes, or a list of them`},
		{"[maintenance]\nrequired = 1", `:2: cannot use the value of maintenance.required: want true or false`},
		{"[agent]\nlease = 1.5", `:2: cannot use the value of agent.lease: want a whole number, or text in quotes`},
		{"[agent]\nlease = 07:32:00", `:2: cannot use the value of agent.lease`},
		{"[agent]\nlease = 5m", `:2: not valid TOML: `},
		{"[agent\nlease = 5", `:2: not valid TOML: `},
		{"[db]\nhost = 'a'\nhost = 'b'", `:3: not valid TOML: Key 'db.host' has already been defined.`},
	} {
		src := source(t, []string{docker})
		src.File = write(t, "c.toml", test.text)
		lines := mustFail(t, src)
		if len(lines) != 1 || !strings.HasPrefix(lines[0], src.File) || !strings.Contains(lines[0], test.want) {
			t.Errorf("%q: got %q, want %q", test.text, lines, test.want)
		}
	}
}

// Whatever way a secret is mistyped, the message about it does not repeat it.
func TestTOMLErrorsHideSecrets(t *testing.T) {
	for _, text := range []string{
		"[db]\npassword = hUnTeR2",
		"[db]\npasswrd = hUnTeR2",
		"[db]\npasswrd = 'hUnTeR2'",
		"[db]\npassword = hUnTeR2 # 'x'",
		"[db]\npassword = \"hUnTeR2",
		"[db]\npassword = \"hUnTeR2\\q\"",
		"[db]\npassword = 0hUnTeR2",
		"[db]\npassword = truehUnTeR2",
		"[db]\npassword = ['hUnTeR2']",
		"[db]\npassword 'hUnTeR2'",
		"[db]\npassword = 'x'hUnTeR2",
		"[db]\npassword\nhUnTeR2 = 1",
		"[db]\nurl = postgres://u:hUnTeR2@h/d",
		"[db]\nhost = postgres://u:hUnTeR2@h/d",
		"[db]\nurl = 'mysql://u:hUnTeR2@h/d'",
		"db.password = hUnTeR2",
		"password = hUnTeR2",
		"password = 'hUnTeR2'",
		"hUnTeR2",
	} {
		src := source(t, []string{docker})
		src.File = write(t, "c.toml", text)
		got := strings.Join(mustFail(t, src), "\n")
		// A piece would be too much as well. The key "hUnTeR2 = 1" is no value.
		if strings.Contains(strings.ToLower(got), "unter") && !strings.Contains(text, "hUnTeR2 = 1") {
			t.Errorf("%q: %s", text, got)
		}
		if !strings.Contains(got, src.File+":") {
			t.Errorf("%q: no line in %s", text, got)
		}
	}
}

// A file that cannot be read at all says only that, not that the keys it holds
// are missing; what the environment gets wrong is told all the same.
func TestBrokenFileHidesNothing(t *testing.T) {
	src := source(t, []string{"WRKTALK_AGENT_LOG_LEVEL=LOUD"})
	src.File = write(t, "c.toml", "[agent]\ndeployment_type = docker\n")
	lines := mustFail(t, src)
	if len(lines) != 2 || !strings.Contains(lines[0], "not valid TOML") || !strings.Contains(lines[1], "LOUD") {
		t.Errorf("errors: %q", lines)
	}
}

func TestFileTooLarge(t *testing.T) {
	src := source(t, []string{docker})
	src.File = write(t, "c.toml", strings.Repeat("#", maxFile+1))
	if lines := mustFail(t, src); len(lines) != 1 || !strings.Contains(lines[0], "is larger than 1MiB") {
		t.Errorf("errors: %q", lines)
	}
}

func TestDistance(t *testing.T) {
	got := []int{distance("", "abc"), distance("abc", "abc"), distance("abc", "acb"), distance("kitten", "sitting"), distance("ab", "")}
	if want := []int{3, 0, 1, 3, 2}; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}
