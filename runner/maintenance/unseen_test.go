package maintenance_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

// A reload that succeeds proves nothing: nginx without the snippet, or with
// another path in it, goes on serving the application. Nobody is told that the
// page is on.
func TestNginxThatDoesNotLookForTheFlag(t *testing.T) {
	a := newApp(t)
	n := testenv.NewNginx(t, testenv.NginxOptions{Upstream: a.address})
	s := newSwitch(t, maintenance.Options{
		Handler: maintenance.HandlerNginx, FlagFile: filepath.Join(t.TempDir(), "elsewhere"), ReloadCommand: n.ReloadCommand,
	})
	err := s.Enter(t.Context(), "task-1")
	if err == nil || !strings.Contains(err.Error(), "does not look for") || !strings.Contains(err.Error(), "include wrktalk-maintenance.conf") {
		t.Errorf("Enter() = %v", err)
	}
	must(t, s.Leave(t.Context(), "task-1"))
	state(t, s, false, false)
}
