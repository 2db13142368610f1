package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/operator"
)

// What run refuses, check finds, in the same words, and neither changes anything.
func TestRunAndCheckRefuseTheSame(t *testing.T) {
	bin := t.TempDir()
	if err := os.WriteFile(filepath.Join(bin, "wrktalk-deploy"), []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	home := t.TempDir()
	for _, step := range []error{
		os.MkdirAll(filepath.Join(home, "tmp", "work"), 0o755),
		os.WriteFile(filepath.Join(home, "ready"), []byte("theirs"), 0o644),
	} {
		if step != nil {
			t.Fatal(step)
		}
	}
	before, err := os.Stat(home)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	other := httptest.NewServer(http.NotFoundHandler())
	defer other.Close()
	taken := strings.TrimPrefix(other.URL, "http://")
	running := filepath.Join(t.TempDir(), "staging")
	lock, err := staging.LockAgent(running)
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	for _, c := range []struct {
		name, setting, check string
		want                 string
		code                 int
	}{
		{"a directory in use", "WRKTALK_AGENT_STAGING_DIR=" + home, "staging", "staging.dir " + home + " is in use by something else", exitUsage},
		{"a directory of the system", "WRKTALK_AGENT_STAGING_DIR=/etc", "staging", "staging.dir /etc is a directory of the system", exitUsage},
		{"a file", "WRKTALK_AGENT_STAGING_DIR=" + filepath.Join(home, "ready"), "staging", "is not a directory", exitUsage},
		{"a taken port", "WRKTALK_AGENT_HTTP_LISTEN=" + taken, "health", "health cannot be served on " + taken + ": address already in use", exitFailed},
		{"no address of this host", "WRKTALK_AGENT_HTTP_LISTEN=192.0.2.1:9471", "health", "set http.listen to an address of this host", exitFailed},
		{"a second agent", "WRKTALK_AGENT_STAGING_DIR=" + running, "", "another agent (process ", exitFailed},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := &operatorEnv{t: t, dir: t.TempDir()}
			var out, complaint testenv.Output
			a := d.app(&out, &complaint, c.setting)
			code := a.main([]string{"run"})
			if said := complaint.String(); code != c.code || !strings.HasPrefix(said, "wrktalk-agent run: ") || !strings.Contains(said, c.want) || strings.Count(said, "\n") != 1 {
				t.Errorf("run ends with %d and says %q", code, said)
			}
			if c.check == "" {
				return
			}
			cfg, err := a.config()
			if err != nil {
				t.Fatal(err)
			}
			check := &checker{app: a, cfg: cfg}
			check.Staging(cfg.Staging.Dir)
			check.health()
			found := false
			for _, f := range check.Findings {
				found = found || f.Check == c.check && f.Result == operator.CheckFailed && strings.Contains(f.Text, c.want)
			}
			if !found {
				t.Errorf("check finds %+v", check.Findings)
			}
		})
	}
	after, err := os.Stat(home)
	if err != nil || after.Mode() != before.Mode() || !after.ModTime().Equal(before.ModTime()) {
		t.Errorf("the directory in use was changed: %v, %v", after, err)
	}
}
