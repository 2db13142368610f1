package operator_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// The health check of a container fails where no agent runs, and in a crash loop, and for
// nothing else: not for want of a page, nor for what another agent's page says.
func TestHealth(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "staging")
	page := func(status int, text string) string {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(status)
			fmt.Fprint(w, text)
		}))
		t.Cleanup(s.Close)
		return strings.TrimPrefix(s.URL, "http://")
	}
	bad := `{"ok": false, "staging": %q, "components": [{"name": "runner", "reason": "exit status 2", "crash_loop": true}]}`
	check := func(listen, want string, healthy bool) {
		t.Helper()
		text, err := (&operator.Client{StagingDir: dir, Listen: listen}).Health(t.Context())
		if err != nil {
			text = err.Error()
		}
		if (err == nil) != healthy || !strings.Contains(text, want) {
			t.Errorf("it says %q, %v, want %q", text, err, want)
		}
	}
	check("", "no agent runs", false)
	lock, err := staging.LockAgent(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	check("", "http.listen is off", true)
	check(page(503, fmt.Sprintf(bad, "/elsewhere")), "another program", true)
	check(page(404, "not found"), "another program", true)
	check(page(503, fmt.Sprintf(bad, dir)), "not healthy: runner: not ready: exit status 2 (crash loop)", false)
	check(page(200, fmt.Sprintf(`{"ok": true, "staging": %q}`, dir)), "healthy", true)
}
