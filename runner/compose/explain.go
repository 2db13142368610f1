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

	"github.com/wrktalk/wrktalk-agent/internal/mask"
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
		tail = r.tail(ctx, f.id)
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
		w := &watch{engine: r.engine, p: d.project, settle: r.job.Compose.Settle, now: time.Now, masker: r.masker}
		verdicts, err := w.look(ctx)
		if err != nil {
			sentence += ": " + r.line(err.Error())
			break
		}
		if late := laggards(verdicts); late != "" {
			sentence += ": " + late
		}
		for _, v := range verdicts {
			if (v.standing == pending || v.standing == failed) && v.id != "" {
				tail = r.tail(ctx, v.id)
				break
			}
		}
	default:
		sentence = fmt.Sprintf("release %s did not come up: %s", version, r.line(cause.Error()))
	}
	return sentence, tail
}

// tail returns the last lines of a container's log, masked, or none: its log
// driver may not let them be read.
func (r *run) tail(ctx context.Context, id string) []string {
	e := r.engine
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
		_, err = io.Copy(text, log)
	} else {
		_, err = stdcopy.StdCopy(text, text, log)
	}
	if err != nil && text.Len() == 0 {
		return nil
	}
	return tailOf(text, r.masker)
}

// tailOf returns the last lines of text. It masks before it cuts anything, and
// drops a line that the limit has cut: half a secret is not found.
func tailOf(text *capped, masker *mask.Masker) []string {
	whole := text.String()
	if text.full {
		whole = whole[:strings.LastIndexByte(whole, '\n')+1]
	}
	var lines []string
	for l := range strings.Lines(masker.String(whole)) {
		if l = strings.TrimRight(l, "\r\n\t "); l != "" {
			lines = append(lines, task.SafeText(l, maxTailLine))
		}
	}
	return lines[max(0, len(lines)-tailLines):]
}

// capped is a buffer that is full at limit bytes. A piece that does not fit is
// not taken at all.
type capped struct {
	bytes.Buffer
	limit int
	full  bool
}

var errFull = errors.New("enough was read")

func (c *capped) Write(p []byte) (int, error) {
	if c.full = c.full || c.Len()+len(p) > c.limit; c.full {
		return 0, errFull
	}
	return c.Buffer.Write(p)
}

// ReadFrom hides the buffer's own, which knows no limit.
func (c *capped) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(writeOnly{c}, r)
}

type writeOnly struct{ io.Writer }
