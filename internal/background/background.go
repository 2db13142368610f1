// Package background has goroutines with an owner, who stops them and waits for
// their end.
package background

import (
	"context"
	"time"
)

// Worker is a goroutine that is owned by whoever started it.
type Worker struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// Start calls run in a goroutine. The context of run ends with ctx, or when the
// owner calls Stop, which it has to.
func Start(ctx context.Context, run func(ctx context.Context)) *Worker {
	ctx, cancel := context.WithCancel(ctx)
	w := &Worker{cancel: cancel, done: make(chan struct{})}
	go func() {
		defer close(w.done)
		run(ctx)
	}()
	return w
}

// Every is Start for what is to be done once per interval, for the first time
// after one, until tick returns false.
func Every(ctx context.Context, interval time.Duration, tick func(ctx context.Context) bool) *Worker {
	return Start(ctx, func(ctx context.Context) {
		t := time.NewTicker(interval)
		defer t.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-t.C:
			}
			if ctx.Err() != nil || !tick(ctx) {
				return
			}
		}
	})
}

// Stop ends the worker's context and waits until the worker has returned. It may
// be called more than once, by several goroutines, and on a nil Worker.
func (w *Worker) Stop() {
	if w == nil {
		return
	}
	w.cancel()
	<-w.done
}

// Done is closed when the worker has returned.
func (w *Worker) Done() <-chan struct{} { return w.done }

// Grace returns a context that ends once ctx has ended and d has passed since,
// for what is to be finished first, and a function that ends it at once, which
// may be called more than once.
func Grace(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	later, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		timer := time.AfterFunc(d, cancel)
		context.AfterFunc(later, func() { timer.Stop() })
	})
	return later, func() { stop(); cancel() }
}
