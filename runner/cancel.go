package runner

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/background"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

const (
	// localCancelPoll is how often a task's directory is looked at for an operator's
	// request to cancel the task, dbCancelPoll how often the database is asked for
	// one that was made on another host.
	localCancelPoll = 250 * time.Millisecond
	dbCancelPoll    = 3 * time.Second
)

// cancelRequest is an operator's request to cancel a task, awaited for as long as
// the task runs.
type cancelRequest struct {
	made   chan struct{} // closed when there is one
	worker *background.Worker

	root  *os.Root
	askDB func(ctx context.Context) (reason string, ok bool, err error)

	mu        sync.Mutex
	requested bool
	reason    string
	localOnly bool // the database has no place for requests, or no row of the task
}

// watchCancel begins to look for a request. The caller stops it.
func (r *Runner) watchCancel(t *staging.Task, m *staging.Manifest) (*cancelRequest, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	c := &cancelRequest{
		made: make(chan struct{}), root: root, localOnly: m.Offline,
		askDB: func(ctx context.Context) (string, bool, error) {
			return r.db.CancelRequested(ctx, m.TaskID, m.Token)
		},
	}
	asked := time.Now()
	c.worker = background.Every(context.Background(), localCancelPoll, func(ctx context.Context) bool {
		askDB := time.Since(asked) >= dbCancelPoll
		if askDB {
			asked = time.Now()
		}
		return !c.poll(ctx, askDB)
	})
	return c, nil
}

func (c *cancelRequest) stop() {
	c.worker.Stop()
	_ = c.root.Close() // nothing was written through it
}

// poll reports whether there is a request. A look that fails finds none: the next
// one comes soon.
func (c *cancelRequest) poll(ctx context.Context, askDB bool) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.requested {
		return true
	}
	reason, ok, _ := staging.CancelRequested(c.root)
	if !ok && askDB && !c.localOnly {
		ctx, cancel := context.WithTimeout(ctx, dbCancelPoll)
		defer cancel()
		var err error
		reason, ok, err = c.askDB(ctx)
		c.localOnly = errors.Is(err, taskdb.ErrNotMigrated)
	}
	if ok {
		c.requested, c.reason = true, reason
		close(c.made)
	}
	return ok
}

// error says that the task was cancelled; "" when nobody asked for it.
func (c *cancelRequest) error() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case !c.requested:
		return ""
	case c.reason != "":
		return "cancelled by an operator (" + c.reason + ")"
	default:
		return "cancelled by an operator"
	}
}
