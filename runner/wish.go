package runner

import (
	"context"
	"errors"
	"os"
	"sync"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

const (
	// wishEvery is how often a task's directory is looked at for an operator's
	// wish to cancel it, askWishEvery how often the database is asked for one
	// that was made on another host.
	wishEvery    = 250 * time.Millisecond
	askWishEvery = 3 * time.Second
)

// wish is an operator's wish to have a task cancelled, awaited for as long as
// the task runs.
type wish struct {
	made   chan struct{} // closed when there is one
	cancel context.CancelFunc
	done   chan struct{}

	root *os.Root
	ask  func(ctx context.Context) (reason string, ok bool, err error) // the database

	mu     sync.Mutex
	closed bool
	reason string
	local  bool // the database has no place for wishes
}

// awaitWish begins to look for a wish. The caller stops it.
func (r *Runner) awaitWish(t *staging.Task, m *staging.Manifest) (*wish, error) {
	root, err := t.Root()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(context.Background())
	w := &wish{
		made: make(chan struct{}), cancel: cancel, done: make(chan struct{}), root: root,
		local: m.Offline,
		ask: func(ctx context.Context) (string, bool, error) {
			return r.db.CancelRequested(ctx, m.TaskID, m.Token)
		},
	}
	go func() {
		defer close(w.done)
		tick := time.NewTicker(wishEvery)
		defer tick.Stop()
		for asked := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			remote := time.Since(asked) >= askWishEvery
			if remote {
				asked = time.Now()
			}
			if w.look(ctx, remote) {
				return
			}
		}
	}()
	return w, nil
}

func (w *wish) stop() {
	w.cancel()
	<-w.done
	_ = w.root.Close()
}

// look reports whether there is a wish. A look that fails finds none: the next
// one comes soon.
func (w *wish) look(ctx context.Context, remote bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return true
	}
	reason, ok, _ := staging.CancelRequested(w.root)
	if !ok && remote && !w.local {
		ctx, cancel := context.WithTimeout(ctx, askWishEvery)
		defer cancel()
		var err error
		reason, ok, err = w.ask(ctx)
		w.local = errors.Is(err, taskdb.ErrNotMigrated)
	}
	if ok {
		w.closed, w.reason = true, reason
		close(w.made)
	}
	return ok
}

// error says that the task was cancelled; "" when nobody wished it.
func (w *wish) error() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case !w.closed:
		return ""
	case w.reason != "":
		return "cancelled by an operator (" + w.reason + ")"
	default:
		return "cancelled by an operator"
	}
}
