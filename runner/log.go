package runner

import (
	"errors"
	"io"
	"os"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// deployLog is a task's deploy.log. wrktalk-deploy masks what it says; the mask
// here is for what it says while it is dying.
type deployLog struct {
	*mask.Writer
	file *os.File
}

// openLog opens the log of a run, after what earlier attempts left in it.
func openLog(t *staging.Task, job deployment.Job) (io.WriteCloser, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	f, err := root.OpenFile(staging.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	envs := []map[string]string{readEnv(job.Release.EnvFile)}
	if job.Previous != nil {
		envs = append(envs, readEnv(job.Previous.EnvFile))
	}
	return &deployLog{Writer: mask.New(envs...).Writer(f), file: f}, nil
}

func (l *deployLog) Close() error { return errors.Join(l.Flush(), l.file.Close()) }

// readEnv reads the assignments of an env file, roughly: what it does not
// understand, wrktalk-deploy does.
func readEnv(path string) map[string]string {
	if path == "" {
		return nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	env := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		line = strings.TrimPrefix(strings.TrimSpace(line), "export ")
		name, value, ok := strings.Cut(line, "=")
		if !ok || strings.HasPrefix(line, "#") {
			continue
		}
		value = strings.TrimSpace(value)
		for _, quote := range []string{`"`, `'`} {
			if rest, ok := strings.CutPrefix(value, quote); ok {
				value, _, _ = strings.Cut(rest, quote)
				break
			}
		}
		env[strings.TrimSpace(name)] = value
	}
	return env
}
