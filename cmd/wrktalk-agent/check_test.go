package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// findings returns what check says about one thing.
func (d *operatorEnv) findings(of string, settings ...string) (found []operator.Finding) {
	d.t.Helper()
	var out, complaint testenv.Output
	a := d.app(&out, &complaint, settings...)
	cfg, err := a.config()
	if err != nil {
		d.t.Fatal(err)
	}
	c := &checker{app: a, cfg: cfg}
	c.Staging(cfg.Staging.Dir)
	c.WorkingDir(cfg.Compose.WorkingDir)
	for _, f := range c.Findings {
		if f.Check == of {
			found = append(found, f)
		}
	}
	return found
}

// A working directory that cannot be used is found before the first release.
func TestCheckLooksAtTheWorkingDirectory(t *testing.T) {
	d := &operatorEnv{t: t, dir: t.TempDir()}
	file := filepath.Join(d.dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	lasting, err := os.MkdirTemp("/var/tmp", "wrktalk-check-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(lasting)
	for dir, want := range map[string]string{
		filepath.Join(lasting, "work", "deep"): operator.CheckOK,
		d.dir:                                  operator.CheckFailed, // it holds somebody's file
		file:                                   operator.CheckFailed,
		filepath.Join(file, "below"):           operator.CheckFailed,
		"/tmp/wrktalk":                         operator.CheckWarning,
	} {
		got := d.findings("working directory", "WRKTALK_AGENT_COMPOSE_WORKING_DIR="+dir)
		if len(got) != 1 || got[0].Result != want {
			t.Errorf("%s: %+v, want %s", dir, got, want)
		}
	}
	if os.Geteuid() != 0 {
		locked := filepath.Join(d.dir, "locked")
		if err := os.Mkdir(locked, 0o500); err != nil {
			t.Fatal(err)
		}
		if got := d.findings("working directory", "WRKTALK_AGENT_COMPOSE_WORKING_DIR="+filepath.Join(locked, "work")); got[0].Result != operator.CheckFailed || !strings.Contains(got[0].Text, "compose.working_dir") {
			t.Errorf("a directory of another user: %+v", got)
		}
	}
}

// wrktalk-deploy gets what Docker and Kubernetes clients need, and nothing of
// the database's.
func TestDeployEnvironmentHoldsNothingOfTheDatabase(t *testing.T) {
	here, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	got := deployEnv([]string{"PATH=/bin", "PGPASSFILE=f", "PGOPTIONS=o", "WRKTALK_AGENT_DB_PASSWORD=p", "DOCKER_HOST=d", "KUBECONFIG=/a:b::/c/../d"})
	if strings.Join(got, " ") != "PATH=/bin DOCKER_HOST=d KUBECONFIG=/a:"+here+"/b::/d" {
		t.Errorf("kept: %q", got)
	}
}

// A flag of the other kind of release names the right one.
func TestPushRefusesWhatTheReleaseCannotUse(t *testing.T) {
	d := &operatorEnv{t: t, dir: t.TempDir()}
	for _, c := range []struct{ deployment, flag, want string }{
		{"docker", "--values", "--env FILE"}, {"kubernetes", "--env", "--values FILE"},
	} {
		var out, complaint testenv.Output
		a := d.app(&out, &complaint, "WRKTALK_AGENT_DEPLOYMENT_TYPE="+c.deployment)
		code := a.main([]string{"push", d.dir, "--version", "1.0.0", c.flag, "/dev/null"})
		if code != exitUsage || !strings.Contains(complaint.String(), c.want) {
			t.Errorf("%s on %s: exit code %d, %s", c.flag, c.deployment, code, complaint.String())
		}
	}
}
