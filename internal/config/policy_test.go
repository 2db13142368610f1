package config

import (
	"bytes"
	"path/filepath"
	"slices"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
)

// TestRules covers the way from the file to the rules, through the snapshot that
// the components get.
func TestRules(t *testing.T) {
	password := write(t, "db-password", "hunter2\n")
	src := source(t, []string{docker, "WRKTALK_AGENT_DB_PASSWORD_FILE=" + password})
	src.File = write(t, "c.toml", `
[kube]
kubeconfig = "/etc/app/kubeconfig"
[policy]
preset = "restricted"
sysctls = "allow"
allowed_paths = ["/etc/app/app.env", "/srv/app/"]
`)
	loaded := mustLoad(t, src)
	snapshot, err := loaded.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	c, err := LoadSnapshot(bytes.NewReader(snapshot))
	if err != nil {
		t.Fatal(err)
	}
	r := c.Rules()
	if !r.Refuses(policy.Privileged) || r.Refuses(policy.Sysctls) || r.Parents != policy.ParentsRefuse {
		t.Errorf("%+v", r)
	}
	if !slices.Equal(r.AllowedPaths, []string{"/etc/app/app.env", "/srv/app"}) {
		t.Errorf("allowed: %q", r.AllowedPaths)
	}
	for _, own := range []string{c.StateDir, c.RuntimeDir, c.Staging.Dir, filepath.Dir(systemFile), src.File, password, "/etc/app/kubeconfig"} {
		if !slices.Contains(r.Own, own) {
			t.Errorf("%s is not the agent's own: %q", own, r.Own)
		}
	}
	if r := mustLoad(t, source(t, []string{docker})).Rules(); len(r.Refused) != 0 || r.Parents != policy.ParentsReadOnly {
		t.Errorf("by default: %+v", r)
	}
}
