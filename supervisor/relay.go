package supervisor

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	relayQueue    = 64              // entries of components, of at most maxLine bytes each; as many of our own
	relayPatience = 2 * time.Second // how long a component waits for a stalled output, once
	relayFlush    = time.Second     // how long the end of Run waits for it
)

// relay is the only writer of the supervisor's output: lines that components
// wrote as records already, and the supervisor's own records, in one order.
// Everybody else puts into its queue, so that an output nobody reads stops
// neither a component nor the supervisor.
type relay struct {
	w       io.Writer
	log     *slog.Logger // the caller's, which writes to w
	patient time.Duration
	queue   chan entry
	lines   chan struct{} // holds a token per entry of a component in queue
	own     chan struct{} // the same of the supervisor's: talkative components leave it room
	quit    chan struct{}
	done    chan struct{}
	stalled atomic.Bool
	lost    atomic.Int64
}

// entry is either a finished line or a record and the handler to write it.
type entry struct {
	line   []byte
	record *slog.Record
	to     slog.Handler
	room   chan struct{} // what it holds a token in
}

func newRelay(w io.Writer, log *slog.Logger) *relay {
	return &relay{
		w: w, log: log, patient: relayPatience,
		queue: make(chan entry, 2*relayQueue),
		lines: make(chan struct{}, relayQueue),
		own:   make(chan struct{}, relayQueue),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
	}
}

// run writes until close is called and the queue is empty.
func (r *relay) run() {
	defer close(r.done)
	for {
		select {
		case e := <-r.queue:
			r.write(e)
		case <-r.quit:
			for {
				select {
				case e := <-r.queue:
					r.write(e)
				default:
					return
				}
			}
		}
	}
}

func (r *relay) write(e entry) {
	<-e.room
	// There is nobody left to tell when the log cannot be written.
	if e.record != nil {
		_ = e.to.Handle(context.Background(), *e.record)
	} else {
		_, _ = r.w.Write(e.line)
	}
	r.stalled.Store(false)
	if n := r.lost.Swap(0); n > 0 {
		r.log.Error("lose log lines: the log output stalled", "component", "supervisor", "lines", n)
	}
}

// put hands e over: a component's line patiently, the supervisor's own record
// not. When the queue is full, a patient caller waits once for the output to
// move; from then on lines are dropped until it does.
func (r *relay) put(e entry, patient bool) {
	e.room = r.own
	if patient {
		e.room = r.lines
	}
	select {
	case e.room <- struct{}{}:
		r.queue <- e // has room for every token
		return
	default:
	}
	if patient && !r.stalled.Load() {
		t := time.NewTimer(r.patient)
		defer t.Stop()
		select {
		case e.room <- struct{}{}:
			r.queue <- e
			return
		case <-r.quit:
		case <-t.C:
			r.stalled.Store(true)
		}
	}
	r.lost.Add(1)
}

// close flushes. It gives up on an output that is stuck: a write that blocks
// cannot be interrupted, and the process is about to end anyway.
func (r *relay) close() {
	close(r.quit)
	t := time.NewTimer(relayFlush)
	defer t.Stop()
	select {
	case <-r.done:
	case <-t.C:
	}
}

// logger returns one that writes through the queue and never blocks.
func (r *relay) logger() *slog.Logger { return slog.New(queued{r.log.Handler(), r}) }

// queued is a slog.Handler whose records are written by the relay.
type queued struct {
	slog.Handler
	relay *relay
}

func (q queued) Handle(_ context.Context, rec slog.Record) error {
	rec = rec.Clone()
	q.relay.put(entry{record: &rec, to: q.Handler}, false)
	return nil
}

func (q queued) WithAttrs(attrs []slog.Attr) slog.Handler {
	return queued{q.Handler.WithAttrs(attrs), q.relay}
}

func (q queued) WithGroup(name string) slog.Handler {
	return queued{q.Handler.WithGroup(name), q.relay}
}
