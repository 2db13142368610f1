// Package controlpipe is what the supervisor and the components it starts say to
// each other: over two inherited pipes, and nowhere else.
//
//	supervisor ── fd 3, the control pipe ──▶ component
//	              the configuration snapshot, once; then nothing;
//	              end of file: the supervisor is gone
//
//	supervisor ◀── fd 4, the status ──── component
//	              {"ready":true} or {"ready":false,"reason":"..."},
//	              one per line, the last one counts; between them
//	              {"sample":{...}}, a number for the metrics, each one counts,
//	              and {"alive":N}: another one follows within N nanoseconds
//
// The snapshot goes through a pipe because it holds secrets: an argument shows
// in ps, the environment in /proc and in every grandchild, a file would have to
// be shredded.
//
// A component stops on SIGTERM, on SIGINT and when the control pipe ends. A second
// signal means at once; the control pipe's end does not count as one, because it
// comes together with the parent-death SIGTERM. A component that is still there
// its stop limit after the control pipe's end has its process group killed: one that
// hangs becomes no orphan.
package controlpipe

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// EnvVar is set to "1" in the environment of a process that was started by the
// supervisor. FromEnv takes it away, so that grandchildren do not believe it.
const EnvVar = "WRKTALK_CONTROL_PIPE"

// The inherited descriptors, as the component sees them.
const (
	SnapshotFD = 3
	StatusFD   = 4
)

// MaxSnapshot is the largest configuration snapshot, in bytes.
const MaxSnapshot = 4 << 20

// maxReason is the longest reason in a Status, in bytes.
const maxReason = 1 << 10

// Status is what a component says of itself.
type Status struct {
	Ready  bool   `json:"ready"`
	Reason string `json:"reason,omitempty"` // why not; fit to show
}

// The other kinds of line on StatusFD.
type (
	sampleLine struct {
		Sample *telemetry.Sample `json:"sample"`
	}
	promiseLine struct {
		Alive time.Duration `json:"alive"` // in nanoseconds
	}
)

// Report is one line on StatusFD: exactly one of its fields is set.
type Report struct {
	Status *Status
	Sample *telemetry.Sample
	Alive  time.Duration // within it the component will report that it is alive again
}

// ParseReport reads one line that a component reports.
func ParseReport(line []byte) (Report, error) {
	var l struct {
		Status
		sampleLine
		promiseLine
	}
	if err := json.Unmarshal(line, &l); err != nil {
		return Report{}, fmt.Errorf("parse a report: %w", err)
	}
	switch {
	case l.Sample != nil:
		return Report{Sample: l.Sample}, nil
	case l.Alive > 0:
		return Report{Alive: l.Alive}, nil
	}
	l.Reason = task.SafeText(l.Reason, maxReason)
	return Report{Status: &l.Status}, nil
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
