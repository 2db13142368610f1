package operator

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// writeHistory writes down what served, oldest first, and keeps the bundles of
// all but those that are named.
func writeHistory(t *testing.T, work string, history []protocol.HistoryEntry, but ...string) {
	t.Helper()
	for i := range history {
		e := &history[i]
		e.SHA256, e.ArtifactID = strings.Repeat(e.Version[:1], 64), "artifact of "+e.Version
		if strings.Contains(strings.Join(but, " "), e.Version) {
			continue
		}
		if err := os.MkdirAll(filepath.Join(work, protocol.BundlesDir, e.Bundle()), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	data, err := json.Marshal(history)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(work, protocol.HistoryFile), data, 0o600); err != nil {
		t.Fatal(err)
	}
}

func entry(kind task.Kind, version string) protocol.HistoryEntry {
	return protocol.HistoryEntry{Kind: kind, Version: version}
}

// Which release an offline rollback goes back to.
func TestRollbackTargetIsTheRightOne(t *testing.T) {
	const deploy, rollback = task.KindDeploy, task.KindRollback
	for _, c := range []struct {
		name    string
		history []protocol.HistoryEntry
		gone    string // is not kept any more
		version string // that a person names
		want    string
		err     string
	}{
		{name: "the one before", history: []protocol.HistoryEntry{entry(deploy, "1.0"), entry(deploy, "2.0")}, want: "1.0"},
		{name: "a second rollback in a row", history: []protocol.HistoryEntry{entry(deploy, "0.9"), entry(deploy, "1.0"), entry(deploy, "2.0"), entry(rollback, "1.0")}, want: "0.9"},
		{
			name: "a second rollback with nothing before", history: []protocol.HistoryEntry{entry(deploy, "1.0"), entry(deploy, "2.0"), entry(rollback, "1.0")},
			err: "no release to roll back to is kept in ",
		},
		{name: "the one before is not kept", history: []protocol.HistoryEntry{entry(deploy, "0.9"), entry(deploy, "1.0"), entry(deploy, "2.0")}, gone: "1.0", want: "0.9"},
		{name: "a named one", history: []protocol.HistoryEntry{entry(deploy, "0.9"), entry(deploy, "1.0"), entry(deploy, "2.0")}, version: "0.9", want: "0.9"},
		{name: "a named one that was left by a rollback", history: []protocol.HistoryEntry{entry(deploy, "1.0"), entry(deploy, "2.0"), entry(rollback, "1.0")}, version: "2.0", want: "2.0"},
		{name: "a named one that is not kept", history: []protocol.HistoryEntry{entry(deploy, "1.0"), entry(deploy, "2.0")}, gone: "1.0", version: "1.0", err: ": 2.0"},
		{name: "a named one that never served", history: []protocol.HistoryEntry{entry(deploy, "1.0"), entry(deploy, "2.0")}, version: "3.0", err: ": 1.0, 2.0"},
		{name: "nothing ever served", err: "nothing to roll back to"},
	} {
		t.Run(c.name, func(t *testing.T) {
			work := t.TempDir()
			writeHistory(t, work, c.history, strings.Fields(c.gone)...)
			release, _, err := RollbackTarget(platform.Of(task.DeploymentDocker), work, c.version)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || release.Version != c.want || release.ArtifactID != "artifact of "+c.want || release.ChartType != task.ChartCompose {
				t.Errorf("it goes back to %+v, %v; want %s", release, err, c.want)
			}
		})
	}
	// The cluster's own records know what Helm goes back to.
	if release, env, err := RollbackTarget(platform.Of(task.DeploymentKubernetes), "", ""); err != nil || release != (staging.Release{ChartType: task.ChartHelm}) || env != nil {
		t.Errorf("for Helm: %+v, %q, %v", release, env, err)
	}
}

// Names are compared alone, whatever the values look like.
func TestMissingEnvReadsNamesOnly(t *testing.T) {
	env := "export COLOUR=blue\n# TOKEN=x\n  SIZE : 3\nBROKEN\n"
	if got := MissingEnv(env, []string{"COLOUR", "TOKEN", "SIZE", "BROKEN"}); strings.Join(got, " ") != "TOKEN BROKEN" {
		t.Errorf("missing: %q", got)
	}
}
