package main

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

func TestStagingIsCountedByStateAndByte(t *testing.T) {
	path := filepath.Join(t.TempDir(), "staging")
	if _, err := countStaging(path, time.Minute); err == nil {
		t.Error("a directory that is not there is counted")
	}
	dir, err := staging.Open(path, staging.Fetcher)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	outside := filepath.Join(t.TempDir(), "outside")
	for file, size := range map[string]int{
		filepath.Join(path, "ready", "a", "payload", "x"): 1000, filepath.Join(path, "ready", "b", "y"): 20,
		filepath.Join(path, "quarantine", "c", "z"): 3, outside: 1 << 20,
	} {
		if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(path, "ready", "a", "link")); err != nil {
		t.Fatal(err)
	}
	s, err := countStaging(path, time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	if s.Bytes != 1023 || len(s.Tasks) != len(staging.States) || s.Tasks["ready"] != 2 || s.Tasks["quarantine"] != 1 || s.Tasks["running"] != 0 {
		t.Errorf("counted %+v", s)
	}
	if s, err := countStaging(path, -time.Second); err != nil || s.Bytes != -1 || s.Tasks["ready"] != 2 {
		t.Errorf("out of time, counted %+v, %v", s, err)
	}
}
