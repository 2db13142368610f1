package runner

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// maxLog bounds a task's deploy.log, in bytes.
const maxLog = 16 << 20

// deployLog is a task's deploy.log. wrktalk-deploy masks what it says; the mask
// here is for what it says while it is dying.
type deployLog struct {
	*mask.Writer
	file *logFile
}

// openLog opens the log of a run, after what earlier attempts left in it. The
// log is for people: a file that cannot be opened or written costs the log, not
// the deployment.
func (r *run) openLog(job protocol.Job) *deployLog {
	envs := []map[string]string{readEnv(job.Release.EnvFile)}
	if job.Previous != nil {
		envs = append(envs, readEnv(job.Previous.EnvFile))
	}
	file := &logFile{complain: func(err error) {
		r.Log.Warn("the deployment's log misses what was said from here on", "task", r.task.Name, "error", err)
	}}
	if err := file.open(r.task); err != nil {
		file.giveUp(err)
	}
	return &deployLog{Writer: mask.New(envs...).Writer(file), file: file}
}

// Close flushes and closes the log; it has complained about what went wrong.
func (l *deployLog) Close() {
	_ = l.Flush()
	l.file.close()
}

// logFile takes whatever is written to it and never fails: an error would end
// the copying of wrktalk-deploy's output, and its next line would end
// wrktalk-deploy.
type logFile struct {
	complain func(error)
	file     *os.File // nil once it was given up
	room     int64    // bytes that may still be written
}

func (l *logFile) open(t *staging.Task) error {
	root, err := t.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := root.OpenFile(staging.LogFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return errors.Join(err, f.Close())
	}
	l.file, l.room = f, max(0, maxLog-info.Size())
	return nil
}

func (l *logFile) Write(p []byte) (int, error) {
	if l.file == nil {
		return len(p), nil
	}
	fits := p[:min(int64(len(p)), l.room)]
	l.room -= int64(len(fits))
	_, err := l.file.Write(fits)
	if err == nil && len(fits) < len(p) {
		err = fmt.Errorf("%s has grown to %d bytes", staging.LogFile, maxLog)
	}
	if err != nil {
		l.giveUp(err)
	}
	return len(p), nil
}

func (l *logFile) giveUp(err error) {
	l.complain(err)
	l.close()
}

func (l *logFile) close() {
	if l.file != nil {
		_ = l.file.Close() // nothing is read back that was not written
		l.file = nil
	}
}

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
