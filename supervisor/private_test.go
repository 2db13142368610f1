package supervisor

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

const secret = "db_password = 'correct horse battery staple'"

func TestSecretsStayPrivate(t *testing.T) {
	a := launch(t, Config{
		Components: []Component{
			comp("fetcher", "snapshot"),
			{Name: "runner", Args: []string{"component", "runner", "stubborn"}, Env: []string{"GOMEMLIMIT=64MiB"}, StopTimeout: time.Millisecond},
		},
		Snapshot: []byte(secret),
		Env: append(os.Environ(),
			"WRKTALK_AGENT_DB_PASSWORD=correct horse", "PGPASSWORD=correct horse", "CREDENTIALS_DIRECTORY=/run/credentials",
			"KEPT=yes"),
	})
	a.awaitReady(t)
	got := a.out.await(t, 1, "component", "fetcher", "msg", "configured")
	if got.text("same") != "true" {
		t.Errorf("the component got another snapshot than the supervisor had")
	}
	for _, s := range a.Statuses() {
		for _, file := range []string{"environ", "cmdline"} {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", s.PID, file))
			if err != nil {
				t.Fatal(err)
			}
			for _, private := range []string{"correct horse", "WRKTALK_AGENT", "PGPASSWORD", "CREDENTIALS_DIRECTORY", "NOTIFY_SOCKET"} {
				if strings.Contains(string(b), private) {
					t.Errorf("%s of %s shows %s", file, s.Name, private)
				}
			}
			vars := strings.Split(string(b), "\x00")
			if file == "environ" && !slices.Contains(vars, "KEPT=yes") {
				t.Errorf("%s lost a variable that is nobody's secret", s.Name)
			}
			if file == "environ" && s.Name == "runner" && !slices.Contains(vars, "GOMEMLIMIT=64MiB") {
				t.Errorf("%s lacks the variable of its own", s.Name)
			}
		}
	}
	// The component's own view, after FromEnv: what it would hand on.
	if env := got.text("environment"); strings.Contains(env, "WRKTALK_") {
		t.Errorf("a component would hand on %q", env)
	}
	grandchild := a.out.await(t, 1, "msg", "holding")
	for d := range strings.FieldsSeq(grandchild.text("descriptors")) {
		if strings.HasPrefix(d, "3=pipe") || strings.HasPrefix(d, "4=pipe") {
			t.Errorf("a grandchild inherited %s", d)
		}
	}
	if v := grandchild.text("control-pipe"); v != "" {
		t.Errorf("a grandchild believes that the supervisor started it (%q)", v)
	}
	if log := strings.Join(a.out.all(), "\n"); strings.Contains(log, "correct horse") {
		t.Errorf("the log shows the secret")
	}
}

// The snapshot is larger than any pipe holds.
func TestALargeSnapshotArrives(t *testing.T) {
	big := strings.Repeat("k = 'v'\n", 1<<17)
	a := launch(t, Config{Components: []Component{comp("fetcher", "snapshot")}, Snapshot: []byte(big)})
	a.awaitReady(t)
}

func TestScrubEnv(t *testing.T) {
	got := scrubEnv([]string{
		"PATH=/bin", "PGHOST=h", "WRKTALK_AGENT_DB_HOST=h", "NOTIFY_SOCKET=s", "WATCHDOG_USEC=1",
		"CREDENTIALS_DIRECTORY=d", "HOME=/root", "PAGER=less", "LISTEN_FDS=1", "KUBECONFIG=k", "PGPASSFILE=f", "PGPASSWORD=p", "PGOPTIONS=o",
	})
	if want := []string{"PATH=/bin", "HOME=/root", "PAGER=less", "KUBECONFIG=k", "PGPASSFILE=f", "PGOPTIONS=o"}; !slices.Equal(got, want) {
		t.Errorf("scrubEnv keeps %q, want %q", got, want)
	}
}
