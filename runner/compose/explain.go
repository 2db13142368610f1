package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

const (
	tailLines      = 20
	maxTailBytes   = 256 << 10 // read of a container's log
	maxTailLine    = 1 << 10   // bytes of one line
	maxQuote       = 300       // bytes quoted within a sentence
	explainTimeout = 10 * time.Second
)

// explain says in one sentence why d did not come up, and returns the last
// lines of the log of the container that is to blame. It must come before
// anything is restored: that removes the container.
func (r *run) explain(ctx context.Context, d *desired, cause error) (sentence string, tail []string) {
	ctx, cancel := context.WithTimeout(ctx, explainTimeout)
	defer cancel()
	version := d.release.Version
	var f *failure
	switch {
	case errors.As(cause, &f):
		tail = r.engine.tail(ctx, f.id)
		sentence = fmt.Sprintf("release %s did not come up: %s", version, f.Error())
		if n := len(tail); n > 0 && !strings.Contains(sentence, tail[n-1]) {
			sentence += fmt.Sprintf(" (it said last: %s)", task.SafeText(oneLine(tail[n-1]), maxQuote))
		}
	case errors.Is(cause, errTimeout), errors.Is(cause, errRestoreTimeout):
		limit := r.job.Timeout
		if errors.Is(cause, errRestoreTimeout) {
			limit = r.job.RestoreTimeout
		}
		sentence = fmt.Sprintf("release %s was not up after %s", version, limit)
		w := &watch{engine: r.engine, p: d.project, settle: r.job.Compose.Settle, now: time.Now}
		verdicts, err := w.look(ctx)
		if err != nil {
			sentence += ": " + oneLine(err.Error())
			break
		}
		if late := laggards(verdicts); late != "" {
			sentence += ": " + late
		}
		for _, v := range verdicts {
			if (v.standing == pending || v.standing == failed) && v.id != "" {
				tail = r.engine.tail(ctx, v.id)
				break
			}
		}
	default:
		sentence = fmt.Sprintf("release %s did not come up: %s", version, oneLine(cause.Error()))
	}
	return sentence, tail
}

// tail returns the last lines of a container's log, or none: its log driver
// may not let them be read.
func (e *engine) tail(ctx context.Context, id string) []string {
	if id == "" {
		return nil
	}
	info, err := e.api.ContainerInspect(ctx, id)
	if err != nil {
		return nil
	}
	log, err := e.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(tailLines)})
	if err != nil {
		return nil
	}
	defer log.Close()
	text := &capped{limit: maxTailBytes}
	if info.Config != nil && info.Config.Tty {
		_, err = io.Copy(&text.Buffer, io.LimitReader(log, maxTailBytes))
	} else {
		_, err = stdcopy.StdCopy(text, text, log)
	}
	if err != nil && text.Len() == 0 {
		return nil
	}
	var lines []string
	for l := range strings.Lines(text.String()) {
		if l = strings.TrimRight(l, "\r\n\t "); l != "" {
			lines = append(lines, task.SafeText(l, maxTailLine))
		}
	}
	return lines[max(0, len(lines)-tailLines):]
}

// capped is a buffer that is full at limit bytes.
type capped struct {
	bytes.Buffer
	limit int
}

var errFull = errors.New("enough was read")

func (c *capped) Write(p []byte) (int, error) {
	if c.Len()+len(p) > c.limit {
		return 0, errFull
	}
	return c.Buffer.Write(p)
}
