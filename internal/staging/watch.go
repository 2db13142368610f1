package staging

import (
	"context"
	"fmt"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Watcher tells when it is time to look at some states again. What it tells is
// a hint: events may be lost, doubled or overflow, so the receiver lists the
// states on every one, and a timer gives one even when nothing seems to happen.
type Watcher struct {
	hints chan struct{}
	done  chan struct{}
	stop  context.CancelFunc
	err   error // why there are no file system events, nil when there are
}

// Watch starts watching the given states. A first hint is there at once: the
// watch stands before the first look, so nothing slips in between. Without
// file system events (no inotify instance left, a network file system) hints
// come by the timer alone, and Err says why. The caller calls Stop.
func (d *Dir) Watch(rescan time.Duration, states ...State) *Watcher {
	ctx, stop := context.WithCancel(context.Background())
	w := &Watcher{hints: make(chan struct{}, 1), done: make(chan struct{}), stop: stop}
	var events <-chan fsnotify.Event
	var errs <-chan error
	fw, err := fsnotify.NewBufferedWatcher(0)
	if err == nil {
		for _, s := range states {
			if err = fw.Add(d.statePath(s)); err != nil {
				break
			}
		}
		events, errs = fw.Events, fw.Errors
	}
	if err != nil {
		w.err = fmt.Errorf("watch staging directory %s: %w", d.path, err)
	}
	w.hint()
	go func() {
		defer close(w.done)
		if fw != nil {
			defer fw.Close()
		}
		w.serve(ctx, rescan, events, errs)
	}()
	return w
}

func (w *Watcher) serve(ctx context.Context, rescan time.Duration, events <-chan fsnotify.Event, errs <-chan error) {
	timer := time.NewTicker(rescan)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case _, ok := <-events:
			if !ok {
				events = nil
				continue
			}
		case _, ok := <-errs: // an overflow names no path: look everywhere
			if !ok {
				errs = nil
				continue
			}
		}
		w.hint()
	}
}

// hint leaves one hint for the receiver; hints that it has not taken yet are
// one hint, so a burst of events costs one look.
func (w *Watcher) hint() {
	select {
	case w.hints <- struct{}{}:
	default:
	}
}

// Hints delivers the hints.
func (w *Watcher) Hints() <-chan struct{} { return w.hints }

// Err returns why there are no file system events, or nil when there are.
func (w *Watcher) Err() error { return w.err }

// Stop ends the watch and waits for its goroutine.
func (w *Watcher) Stop() {
	w.stop()
	<-w.done
}
