package main

import (
	"errors"
	"io/fs"
	"path/filepath"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/agentdir"
	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/version"
	"github.com/wrktalk/wrktalk-agent/supervisor"
	"github.com/wrktalk/wrktalk-agent/supervisor/metrics"
)

// walkLimit is how long a page of metrics waits for the files in the staging
// directory to be counted. It takes a tenth of a second for 20,000 of them.
const walkLimit = 2 * time.Second

// newMetrics returns the metrics the supervisor serves.
func newMetrics(cfg *config.Config, components func() []supervisor.Status) *metrics.Metrics {
	v := version.Get()
	return metrics.New(metrics.Options{
		Version: v.Version, GoVersion: v.Go,
		Components: components,
		Staging:    func() (metrics.Staging, error) { return countStaging(cfg.Staging.Dir, walkLimit) },
	})
}

var errSlow = errors.New("count the files in the staging directory: it takes too long")

// countStaging counts what lies in the staging directory, while others work
// in it; the bytes are -1 when that takes longer than limit.
func countStaging(path string, limit time.Duration) (metrics.Staging, error) {
	s := metrics.Staging{Tasks: map[string]int{}}
	dir, err := staging.Open(path, staging.Reader)
	if err != nil {
		return s, err
	}
	defer dir.Close()
	for _, state := range staging.States {
		tasks, err := dir.List(state)
		if err != nil {
			return s, err
		}
		s.Tasks[string(state)] = len(tasks)
	}
	deadline := time.Now().Add(limit)
	err = filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err == nil && e.Type().IsRegular() && e.Name() != agentdir.Marker {
			var info fs.FileInfo
			if info, err = e.Info(); err == nil {
				s.Bytes += info.Size()
			}
		}
		switch {
		case errors.Is(err, fs.ErrNotExist): // it moved on meanwhile
			return nil
		case err == nil && time.Now().After(deadline):
			return errSlow
		default:
			return err
		}
	})
	if err != nil {
		s.Bytes = -1
	}
	return s, nil
}
