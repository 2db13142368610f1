package policy_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
)

// world is a host with something of the agent's own, and ways to get there.
func world(t *testing.T) (dir string, rules policy.Rules) {
	t.Helper()
	dir = t.TempDir()
	for _, d := range []string{"etc/agent", "etc/other", "var/app", "allowed"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		"link": "etc/agent", "var/app/link": "../../etc", "allowed/link": "../etc/other",
		"dangling": "hop", "hop": "etc/agent/new", "circle": "circle",
	} {
		if err := os.Symlink(to, filepath.Join(dir, link)); err != nil {
			t.Fatal(err)
		}
	}
	return dir, policy.Rules{Own: []string{dir + "/etc/agent"}}
}

func TestMount(t *testing.T) {
	t.Parallel()
	dir, rules := world(t)
	with := func(change func(*policy.Rules)) policy.Rules {
		r := rules
		change(&r)
		return r
	}
	restricted := policy.New(policy.PresetRestricted, [len(policy.Keys)]policy.Choice{}, "")
	restricted.Own, restricted.AllowedPaths = rules.Own, []string{dir + "/allowed", dir + "/etc/agent/x"}
	sockets := with(func(r *policy.Rules) { r.Refused = []policy.Key{policy.EngineSocket} })
	paths := with(func(r *policy.Rules) { r.Refused = []policy.Key{policy.HostPaths} })
	for _, c := range []struct {
		rules    policy.Rules
		path     string
		readOnly bool
		want     string // of the refusal, "" for none
	}{
		{rules, "/var/app", false, ""},
		{rules, "/etc/agent", true, "the agent's own"},
		{rules, "/etc/agent/", true, "the agent's own"},
		{rules, "/etc/agent/config.toml", true, "the agent's own"},
		{rules, "/etc/agent-of-another", false, ""},
		{rules, "/var/../etc/agent", true, "the agent's own"},
		{rules, "/link", true, "the agent's own"},
		{rules, "/var/app/link/agent/x", true, "the agent's own"},
		{rules, "/var/app/link/other/../agent", true, "the agent's own"},
		{rules, "/dangling", true, "the agent's own"},
		{rules, "/circle", true, ""},
		{rules, "/etc", true, ""},
		{rules, "/etc", false, "could be written to"},
		{rules, "/var/app/link", false, "could be written to"},
		{with(func(r *policy.Rules) { r.Parents = policy.ParentsAllow }), "/etc", false, ""},
		{with(func(r *policy.Rules) { r.Parents = policy.ParentsRefuse }), "/etc", true, "policy.own_parents refuses"},
		{restricted, "/etc", true, "policy.own_parents refuses"},
		{restricted, "/var/app", true, "policy.host_paths refuses"},
		{restricted, "/allowed/x", false, ""},
		{restricted, "/allowed/link", false, "policy.host_paths refuses"},
		{restricted, "/etc/agent/x", false, "the agent's own"},
		{rules, "//run/docker.sock", false, ""},
		{sockets, "//run/docker.sock", true, "policy.engine_socket refuses"},
		{sockets, "//run", true, "policy.engine_socket refuses"},
		{sockets, "/anywhere/docker.sock", true, "policy.engine_socket refuses"},
		{sockets, "/var/app", true, ""},
		{paths, "//run/docker.sock", false, ""},
		{paths, "//run", false, "policy.host_paths refuses"},
	} {
		path := dir + c.path
		if strings.HasPrefix(c.path, "//") {
			path = c.path[1:]
		}
		got := c.rules.Mount(path, c.readOnly)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s, read-only %v: %q, want %q", c.path, c.readOnly, got, c.want)
		}
	}
	if got := rules.Holds(dir + "/etc"); got != dir+"/etc/agent" {
		t.Errorf("/etc holds %q", got)
	}
}

func TestFile(t *testing.T) {
	t.Parallel()
	dir, rules := world(t)
	shadow := rules
	shadow.AllowedPaths = []string{"/etc/shadow"}
	sockets := rules
	sockets.Refused = []policy.Key{policy.EngineSocket}
	restricted := rules
	restricted.Refused = []policy.Key{policy.HostPaths}
	for _, c := range []struct {
		rules      policy.Rules
		path, want string
	}{
		{rules, dir + "/etc/other/app.env", ""},
		{rules, dir + "/etc/agent/config.toml", "the agent's own"},
		{rules, "/etc/hostname", ""},
		{rules, "/etc/shadow", "policy.allowed_paths"},
		{rules, "/etc", "a secret of the host"},
		{rules, "/run/docker.sock", ""},
		{sockets, "/run/docker.sock", "policy.engine_socket refuses"},
		{rules, "/etc/../etc/shadow", "policy.allowed_paths"},
		{rules, "/proc/self/environ", "a secret of the host"},
		{rules, "/root/.ssh/id_ed25519", "a secret of the host"},
		{rules, "/etc/ssh/ssh_host_rsa_key", "a secret of the host"},
		{rules, "/etc/ssh/ssh_host_rsa_key.pub", ""},
		{shadow, "/etc/shadow", ""},
		{shadow, "/etc/gshadow", "a secret of the host"},
		{restricted, dir + "/etc/other/app.env", "policy.host_paths refuses"},
	} {
		got := c.rules.File(c.path)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", c.path, got, c.want)
		}
	}
}

func TestNew(t *testing.T) {
	t.Parallel()
	var choices [len(policy.Keys)]policy.Choice
	if r := policy.New(policy.PresetDefault, choices, policy.ParentsAsPreset); len(r.Refused) != 0 || r.Parents != policy.ParentsReadOnly {
		t.Errorf("%+v", r)
	}
	choices[0], choices[1] = policy.Refuse, policy.Allow
	if r := policy.New(policy.PresetDefault, choices, policy.ParentsAllow); len(r.Refused) != 1 || !r.Refuses(policy.Keys[0].Key) || r.Parents != policy.ParentsAllow {
		t.Errorf("%+v", r)
	}
	r := policy.New(policy.PresetRestricted, choices, "")
	if len(r.Refused) != len(policy.Keys)-1 || r.Refuses(policy.Keys[1].Key) || r.Parents != policy.ParentsRefuse {
		t.Errorf("%+v", r)
	}
}
