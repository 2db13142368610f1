// Package lifeline is what the supervisor and the components it starts say to
// each other: over two inherited pipes, and nowhere else.
//
//	supervisor ── fd 3, the lifeline ──▶ component
//	              the configuration snapshot, once; then nothing;
//	              end of file: the supervisor is gone
//
//	supervisor ◀── fd 4, the status ──── component
//	              {"ready":true} or {"ready":false,"reason":"..."},
//	              one per line, the last one counts; between them
//	              {"sample":{...}}, a number for the metrics, each one counts
//
// The snapshot goes through a pipe because it holds secrets: an argument shows
// in ps, the environment in /proc and in every grandchild, a file would have to
// be shredded.
//
// A component stops on SIGTERM, on SIGINT and when the lifeline ends. A second
// signal means at once; the lifeline's end does not count as one, because it
// comes together with the parent-death SIGTERM. A component that is still there
// its stop limit after the lifeline's end has its process group killed: one that
// hangs becomes no orphan.
package lifeline

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/meter"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// EnvVar is set to "1" in the environment of a process that was started by the
// supervisor. FromEnv takes it away, so that grandchildren do not believe it.
const EnvVar = "WRKTALK_LIFELINE"

// The inherited descriptors, as the component sees them.
const (
	SnapshotFD = 3
	StatusFD   = 4
)

// MaxSnapshot is the largest configuration snapshot, in bytes.
const MaxSnapshot = 4 << 20

// MaxReason is the longest reason in a Status, in bytes.
const MaxReason = 1 << 10

// Status is one line on StatusFD.
type Status struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why not; fit to show
}

// measured is the other kind of line on StatusFD.
type measured struct {
	Sample *meter.Sample `json:"sample"`
}

// ParseStatus reads one line of a component's status: a sample when it holds
// one, else a Status.
func ParseStatus(line []byte) (Status, *meter.Sample, error) {
	var l struct {
		Status
		measured
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Status{}, nil, fmt.Errorf("parse status line: %w", err)
	}
	l.Reason = task.SafeText(l.Reason, MaxReason)
	return l.Status, l.Sample, nil
}

// header precedes the snapshot. The magic ends in the version of the layout.
type header struct {
	Magic     [8]byte
	StopLimit int64 // nanoseconds; not positive: none
	Length    uint32
}

var magic = [8]byte{'w', 'r', 'k', 't', 'a', 'l', 'k', 1}

// Send writes the configuration snapshot as the component expects it, and how
// long the component may go on after the supervisor is gone; not positive
// means without limit. The supervisor keeps w open for the component's life.
func Send(w io.Writer, stopLimit time.Duration, snapshot []byte) error {
	if len(snapshot) > MaxSnapshot {
		return fmt.Errorf("send configuration snapshot: %d bytes exceed the limit of %d", len(snapshot), MaxSnapshot)
	}
	h := header{Magic: magic, StopLimit: int64(stopLimit), Length: uint32(len(snapshot))}
	if err := binary.Write(w, binary.BigEndian, h); err != nil {
		return fmt.Errorf("send configuration snapshot: %w", err)
	}
	if _, err := w.Write(snapshot); err != nil {
		return fmt.Errorf("send configuration snapshot: %w", err)
	}
	return nil
}

// receive reads what Send wrote.
func receive(r io.Reader) (stopLimit time.Duration, snapshot []byte, err error) {
	var h header
	if err := binary.Read(r, binary.BigEndian, &h); err != nil {
		return 0, nil, fmt.Errorf("receive configuration snapshot: %w", err)
	}
	if h.Magic != magic {
		return 0, nil, errors.New("receive configuration snapshot: the supervisor is of another version; restart the agent")
	}
	if h.Length > MaxSnapshot {
		return 0, nil, fmt.Errorf("receive configuration snapshot: %d bytes exceed the limit of %d", h.Length, MaxSnapshot)
	}
	snapshot = make([]byte, h.Length)
	if _, err := io.ReadFull(r, snapshot); err != nil {
		return 0, nil, fmt.Errorf("receive configuration snapshot: %w", err)
	}
	return time.Duration(h.StopLimit), snapshot, nil
}
