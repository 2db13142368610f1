package compose

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/docker/docker/api/types/container"
	"github.com/docker/docker/pkg/stdcopy"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// diagnosisTimeout bounds how long the engine is asked why something failed.
const diagnosisTimeout = 30 * time.Second

// Diagnose finds the container that is to blame, and what it said last.
func (b *backend) Diagnose(ctx context.Context, err error) deploy.Diagnosis {
	ctx, cancel := context.WithTimeout(ctx, diagnosisTimeout)
	defer cancel()
	var f *failure
	switch {
	case errors.As(err, &f):
		tail := b.tail(ctx, f.id)
		return deploy.Diagnosis{Cause: deploy.SaidLast(f.Error(), tail), Tail: tail}
	case deploy.IsLate(err) && b.attempted != nil && b.watch != nil:
		return b.diagnoseLate(ctx)
	case deploy.IsLate(err):
		return deploy.Diagnosis{Late: true}
	default:
		return deploy.Diagnosis{Cause: b.report.Line(err.Error())}
	}
}

// diagnoseLate names what was not up when the time was.
func (b *backend) diagnoseLate(ctx context.Context) deploy.Diagnosis {
	d := deploy.Diagnosis{Late: true}
	looking, cancel := context.WithTimeout(ctx, diagnosisTimeout/2) // the rest is for the log
	defer cancel()
	containers, err := b.watch.look(looking)
	if err != nil && len(b.watch.last) > 0 {
		// The engine does not tell about a container while it starts it, which may
		// take long where one is started all the time.
		containers, err = b.watch.last, nil
	}
	if err != nil {
		d.Cause = b.report.Line(err.Error())
		return d
	}
	d.Cause = notReady(containers)
	if id := culprit(containers); id != "" {
		d.Tail = b.tail(ctx, id)
	}
	return d
}

// culprit returns the id of the container whose log is most likely to tell why the
// others are not up: one that failed or is restarted again and again, and otherwise
// the first that is not up; "" when there is none.
func culprit(containers []containerStatus) string {
	first := ""
	for _, c := range containers {
		switch {
		case c.id == "" || c.state != statePending && c.state != stateFailed:
		case c.state == stateFailed || c.restarts > 0:
			return c.id
		case first == "":
			first = c.id
		}
	}
	return first
}

// tail returns the last lines of a container's log, masked, or none: its log
// driver may not let them be read.
func (b *backend) tail(ctx context.Context, id string) []string {
	e := b.engine
	if id == "" {
		return nil
	}
	info, err := e.api.ContainerInspect(ctx, id)
	if err != nil {
		return nil
	}
	log, err := e.api.ContainerLogs(ctx, id, container.LogsOptions{ShowStdout: true, ShowStderr: true, Tail: fmt.Sprint(deploy.TailLines)})
	if err != nil {
		return nil
	}
	defer log.Close()
	text := &capped{limit: deploy.MaxTailBytes}
	if info.Config != nil && info.Config.Tty {
		_, err = io.Copy(text, log)
	} else {
		_, err = stdcopy.StdCopy(text, text, log)
	}
	if err != nil && text.Len() == 0 {
		return nil
	}
	return b.report.Tail(text.String(), text.full)
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
