package compose

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"errors"
	"io"
	"os"
	"path/filepath"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// CheckRelease reads the release of job as a deployment does, and says why one would
// refuse it. It asks no engine, and writes nothing. What a release wants of the host
// is not looked at: it may be checked on another one. The error shows no secret.
func CheckRelease(ctx context.Context, job *protocol.Job) error {
	if err := checkJob(job); err != nil {
		return err
	}
	env, err := readEnv(job.Release.EnvFile)
	if err != nil {
		return err
	}
	elsewhere := false // it draws in files of the host it is deployed to, which this one has not
	hostFile := func(path string) string {
		if _, err := os.Stat(path); err != nil {
			elsewhere = true
		}
		return ""
	}
	p, src, err := load(ctx, job.Release.PayloadDir, job.Compose.Project, env, hostFile)
	if elsewhere {
		return nil
	}
	if err == nil {
		err = checkContents(p, job.Release.PayloadDir)
	}
	if err == nil {
		return nil
	}
	report := deploy.NewReport(io.Discard, nil)
	report.Learn(env.values, src.env.values)
	return errors.New(report.Line(err.Error()))
}

// checkContents refuses configs and secrets that are to come with the release at dir
// and do not.
func checkContents(p *types.Project, dir string) error {
	for name, service := range p.Services {
		own := types.ServiceConfig{Name: name, ReadOnly: service.ReadOnly, Configs: service.Configs[:0:0], Secrets: service.Secrets[:0:0]}
		for _, ref := range service.Configs {
			if !ofHost(p.Configs[ref.Source].File, dir) {
				own.Configs = append(own.Configs, ref)
			}
		}
		for _, ref := range service.Secrets {
			if !ofHost(p.Secrets[ref.Source].File, dir) {
				own.Secrets = append(own.Secrets, ref)
			}
		}
		c := contentDigest{p: p, dir: dir, mac: hmac.New(sha256.New, nil)} // without files of the host
		if _, err := c.of(own); err != nil {
			return err
		}
	}
	return nil
}

// ofHost reports whether file is one of the host that a release is deployed to.
func ofHost(file, dir string) bool {
	if file == "" {
		return false
	}
	rel, err := filepath.Rel(dir, file)
	return err != nil || !filepath.IsLocal(rel)
}
