// Package operator is what the commands of a person know about an agent: what
// serves and what waits (status.go), what a task does and why it waits
// (follow.go), what was said about it (tasklog.go, tail.go), what lies in the
// staging directory (inspect.go), what an installation lacks (check.go), what a
// release file holds (archive.go, ignore.go), why it would be refused
// (checkrelease.go) and what it may be called (version.go), and how a task is
// cancelled (cancel.go) or a release brought back without the database (rollback.go).
//
// It asks the database, the staging directory and the supervisor's page, works
// beside an agent that runs, and prints nothing: what it finds are values, and
// sentences where a value is a reason.
package operator

import (
	"fmt"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// Client asks about one agent. Its fields are plain values of the agent's
// configuration. It holds nothing open: the database stays the caller's.
type Client struct {
	DB     *taskdb.DB // nil where a method says that it is not asked
	Target taskdb.Target

	StagingDir   string                             // its path
	HistoryDir   string                             // where past runs are kept
	StagingKeep  int                                // finished tasks whose directories are kept
	ReadMail     func(*staging.Task) (*Mail, error) // fs.ErrNotExist before the notifier has been there
	MaxAttempts  int                                // deployments begun for one claim before it is given up
	Listen       string                             // host:port of the supervisor's page, "" for none
	PollInterval time.Duration                      // of an agent for due tasks
	Heartbeat    time.Duration                      // interval between the heartbeats of a task in progress
	Lease        time.Duration                      // age of a heartbeat after which another agent takes over
}

// Mail is what the notifier has recorded about a task's messages.
type Mail struct {
	Record     any    // as it is kept, for programs
	Note       string // what applies to all of them
	Deliveries []Delivery
}

// Delivery is what became of the message to one recipient.
type Delivery struct {
	Address   string
	State     string
	Pending   bool // still to be sent
	Attempts  int
	NextTry   time.Time // when it is pending
	LastError string    // of the last attempt that failed
	UpdatedAt time.Time
}

// pending returns the messages that are still to be sent.
func (m *Mail) pending() []Delivery {
	var pending []Delivery
	for _, d := range m.Deliveries {
		if d.Pending {
			pending = append(pending, d)
		}
	}
	return pending
}

// NameError says that a name which a person gave could mean any task, or more
// than one.
type NameError struct{ text string }

func (e *NameError) Error() string { return e.text }

func nameErrorf(format string, args ...any) error {
	return &NameError{fmt.Sprintf(format, args...)}
}

// absentError says in a sentence of its own what is not there, and is the error that
// callers look for.
type absentError struct {
	text string
	is   error
}

func (e *absentError) Error() string { return e.text }
func (e *absentError) Unwrap() error { return e.is }

func absentf(is error, format string, args ...any) error {
	return &absentError{fmt.Errorf(format, args...).Error(), is}
}
