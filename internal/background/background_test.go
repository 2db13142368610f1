package background

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestStopEndsTheWorkerAndWaitsForIt(t *testing.T) {
	ended := false
	w := Start(t.Context(), func(ctx context.Context) {
		<-ctx.Done()
		ended = true
	})
	w.Stop()
	if !ended {
		t.Error("Stop returned before the worker had")
	}
	w.Stop()
	(*Worker)(nil).Stop()
}

func TestAWorkerEndsWithTheContextItWasStartedWith(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	w := Start(ctx, func(ctx context.Context) { <-ctx.Done() })
	cancel()
	<-w.Done()
	w.Stop()
}

func TestEveryTicksUntilItIsToldNotTo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		ticks := 0
		w := Every(t.Context(), time.Minute, func(context.Context) bool {
			ticks++
			return ticks < 3
		})
		<-w.Done()
		if took := time.Since(begin); ticks != 3 || took != 3*time.Minute {
			t.Errorf("%d ticks in %s", ticks, took)
		}
		w.Stop()
	})
}

func TestGraceOutlivesItsContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		later, release := Grace(ctx, time.Minute)
		defer release()
		cancel()
		stopped := time.Now()
		<-later.Done()
		if after := time.Since(stopped); after != time.Minute {
			t.Errorf("ended %s after its context", after)
		}
	})
}

func TestGraceEndsWhenReleased(t *testing.T) {
	for name, stop := range map[string]bool{"before its context has ended": false, "after its context has ended": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				later, release := Grace(ctx, time.Minute)
				if stop {
					cancel()
					synctest.Wait()
				}
				if later.Err() != nil {
					t.Error("has ended already")
				}
				release()
				release()
				if later.Err() == nil {
					t.Error("goes on")
				}
			})
		})
	}
}
