package runner

import (
	"path"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// job describes the deployment to wrktalk-deploy.
func (r *run) job() protocol.Job {
	t, m := r.task, r.manifest
	has := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		has[f.Path] = true
	}
	release := func(rel staging.Release, under string, payload bool) protocol.Release {
		d := protocol.Release{ArtifactID: rel.ArtifactID, Version: rel.Version, SHA256: rel.SHA256}
		if payload {
			d.PayloadDir = t.Path(under, staging.PayloadDir)
		}
		if has[path.Join(under, staging.EnvFile)] {
			d.EnvFile = t.Path(under, staging.EnvFile)
		}
		if has[path.Join(under, staging.ValuesFile)] {
			d.ValuesFile = t.Path(under, staging.ValuesFile)
		}
		return d
	}
	job := protocol.Job{
		Schema: protocol.Schema, Action: protocol.ActionDeploy,
		TaskID: m.TaskID, Kind: m.Kind, Token: m.Token,
		Release: release(m.Release, "", !m.Offline && m.Release.ArtifactID != ""), Unnamed: m.Unnamed,
		Timeout: r.Timeout, RestoreTimeout: r.RestoreTimeout,
		Settings: r.Settings,
	}
	if m.Previous != nil {
		p := release(*m.Previous, staging.RestoreDir, m.PreviousStaged)
		job.Previous = &p
	}
	return job
}
