package staging

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/wrktalk/wrktalk-agent/internal/background"
)

// Watcher tells when it is time to look at some states again. What it tells is
// a hint: events may be lost, doubled or overflow, so the receiver lists the
// states on every one, and a timer gives one even when nothing seems to happen.
type Watcher struct {
	dir    *Dir
	states []State
	hints  chan struct{}
	err    error // why there are no file system events, nil when there are

	worker *background.Worker
}

// Watch starts watching the given states. A first hint is there at once: the
// watch stands before the first look, so nothing slips in between. Without
// file system events (no inotify instance left, a network file system) hints
// come by the timer alone, and Err says why. The caller calls Stop.
//
// Directories that are removed or replaced are opened again, and watched.
func (d *Dir) Watch(rescan time.Duration, states ...State) *Watcher {
	w := &Watcher{dir: d, states: states, hints: make(chan struct{}, 1)}
	events, err := w.subscribe()
	if err != nil {
		w.err = fmt.Errorf("watch staging directory %s: %w", d.path, err)
	}
	w.hint()
	w.worker = background.Start(context.Background(), func(ctx context.Context) { w.serve(ctx, rescan, events) })
	return w
}

// subscription is a source of file system events about some directories.
type subscription struct {
	watcher *fsnotify.Watcher
	paths   []string
	watched []fs.FileInfo // the directories that lay at paths
}

// subscribe asks for the events in the states, and of the staging directory
// itself, in which nothing happens unless one of them is removed.
func (w *Watcher) subscribe() (*subscription, error) {
	s := &subscription{paths: []string{w.dir.path}}
	for _, state := range w.states {
		s.paths = append(s.paths, w.dir.statePath(state))
	}
	var err error
	if s.watcher, err = fsnotify.NewBufferedWatcher(0); err != nil {
		return nil, err
	}
	for _, path := range s.paths {
		info, err := os.Lstat(path)
		if err == nil {
			err = s.watcher.Add(path)
		}
		if err != nil {
			s.watcher.Close()
			return nil, err
		}
		s.watched = append(s.watched, info)
	}
	return s, nil
}

// current reports whether the directories that are watched are those that lie at
// their paths.
func (s *subscription) current() bool {
	for i, path := range s.paths {
		if info, err := os.Lstat(path); err != nil || !os.SameFile(info, s.watched[i]) {
			return false
		}
	}
	return true
}

// about reports whether an event is about the watched directories themselves.
func (s *subscription) about(e fsnotify.Event) bool {
	return e.Name == s.paths[0] || filepath.Dir(e.Name) == s.paths[0]
}

// serve gives hints until ctx ends; s is nil while there are no events.
func (w *Watcher) serve(ctx context.Context, rescan time.Duration, s *subscription) {
	timer := time.NewTicker(rescan)
	defer timer.Stop()
	defer func() {
		if s != nil {
			s.watcher.Close()
		}
	}()
	for {
		var events <-chan fsnotify.Event
		var errs <-chan error
		if s != nil {
			events, errs = s.watcher.Events, s.watcher.Errors
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
			s = w.renew(s)
		case e := <-events:
			if s.about(e) {
				s = w.renew(s)
			}
		case <-errs: // an overflow names no path: look everywhere
		}
		w.hint()
	}
}

// renew watches the directories that are there now. While that cannot be done it
// returns nil, and is tried again at the next tick.
func (w *Watcher) renew(s *subscription) *subscription {
	if s == nil && w.err != nil || s != nil && s.current() {
		return s
	}
	for _, state := range w.states {
		if _, err := w.dir.root(state); err != nil {
			break // the receiver of the hint will find out
		}
	}
	if s != nil {
		s.watcher.Close()
	}
	next, err := w.subscribe()
	if err != nil {
		return nil
	}
	return next
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
func (w *Watcher) Stop() { w.worker.Stop() }
