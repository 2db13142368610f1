package supervisor

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// maxLine is how many bytes of a component's line are forwarded.
const maxLine = 16 << 10

// isRecord reports whether line was written by a slog handler.
func isRecord(line []byte) bool {
	return bytes.HasPrefix(line, []byte("time=")) ||
		bytes.HasPrefix(line, []byte("{")) && json.Valid(line)
}

// forward returns what copies a component's lines to the log. Those that are no
// records become ones of the given level.
func (s *Supervisor) forward(name string, level slog.Level) func(line []byte, cut int) {
	h := s.logMux.log.Handler().WithAttrs([]slog.Attr{slog.String("component", name)})
	return func(line []byte, cut int) {
		if cut == 0 && isRecord(line) {
			s.logMux.enqueue(logEntry{line: append(bytes.Clone(line), '\n')}, true)
			return
		}
		if len(line) == 0 || !h.Enabled(context.Background(), level) {
			return
		}
		text := task.SafeText(string(line), maxLine+64)
		if cut > 0 {
			text += fmt.Sprintf(" [%d bytes cut]", cut)
		}
		rec := slog.NewRecord(time.Now(), level, text, 0)
		s.logMux.enqueue(logEntry{record: &rec, handler: h}, true)
	}
}
