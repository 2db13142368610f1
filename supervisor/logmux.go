package supervisor

import (
	"context"
	"io"
	"log/slog"
	"sync/atomic"
	"time"
)

const (
	queueLength  = 64              // entries of components, of at most maxLine bytes each; as many of our own
	blockTimeout = 2 * time.Second // how long a component waits for a stalled output, once
	flushTimeout = time.Second     // how long the end of Run waits for it
)

// logMux is the only writer of the supervisor's output: lines that components
// wrote as records already, and the supervisor's own records, in one order.
// Everybody else puts into its queue, so that an output nobody reads stops
// neither a component nor the supervisor.
type logMux struct {
	w            io.Writer
	log          *slog.Logger // the caller's, which writes to w
	blockTimeout time.Duration
	queue        chan logEntry
	lines        chan struct{} // holds a token per entry of a component in queue
	own          chan struct{} // the same of the supervisor's: talkative components leave it room
	quit         chan struct{}
	done         chan struct{}
	stalled      atomic.Bool
	lost         atomic.Int64
}

// logEntry is either a finished line or a record and the handler to write it.
type logEntry struct {
	line    []byte
	record  *slog.Record
	handler slog.Handler
	room    chan struct{} // what it holds a token in
}

func newLogMux(w io.Writer, log *slog.Logger) *logMux {
	return &logMux{
		w: w, log: log, blockTimeout: blockTimeout,
		queue: make(chan logEntry, 2*queueLength),
		lines: make(chan struct{}, queueLength),
		own:   make(chan struct{}, queueLength),
		quit:  make(chan struct{}),
		done:  make(chan struct{}),
	}
}

// run writes until close is called and the queue is empty.
func (m *logMux) run() {
	defer close(m.done)
	for {
		select {
		case e := <-m.queue:
			m.write(e)
		case <-m.quit:
			for {
				select {
				case e := <-m.queue:
					m.write(e)
				default:
					return
				}
			}
		}
	}
}

func (m *logMux) write(e logEntry) {
	<-e.room
	// There is nobody left to tell when the log cannot be written.
	if e.record != nil {
		_ = e.handler.Handle(context.Background(), *e.record)
	} else {
		_, _ = m.w.Write(e.line)
	}
	m.stalled.Store(false)
	if n := m.lost.Swap(0); n > 0 {
		m.log.Error("lose log lines: the log output stalled", "component", "supervisor", "lines", n)
	}
}

// enqueue hands e over: block is set for a component's line, not for the
// supervisor's own record. When the queue is full, the first who may block waits
// for the output to move; from then on lines are dropped until it does.
func (m *logMux) enqueue(e logEntry, block bool) {
	e.room = m.own
	if block {
		e.room = m.lines
	}
	select {
	case e.room <- struct{}{}:
		m.queue <- e // has room for every token
		return
	default:
	}
	if block && !m.stalled.Load() {
		t := time.NewTimer(m.blockTimeout)
		defer t.Stop()
		select {
		case e.room <- struct{}{}:
			m.queue <- e
			return
		case <-m.quit:
		case <-t.C:
			m.stalled.Store(true)
		}
	}
	m.lost.Add(1)
}

// close flushes. It gives up on an output that is stuck: a write that blocks
// cannot be interrupted, and the process is about to end anyway.
func (m *logMux) close() {
	close(m.quit)
	t := time.NewTimer(flushTimeout)
	defer t.Stop()
	select {
	case <-m.done:
	case <-t.C:
	}
}

// logger returns one that writes through the queue and never blocks.
func (m *logMux) logger() *slog.Logger { return slog.New(muxHandler{m.log.Handler(), m}) }

// muxHandler is a slog.Handler whose records are written by the logMux.
type muxHandler struct {
	slog.Handler
	mux *logMux
}

func (h muxHandler) Handle(_ context.Context, rec slog.Record) error {
	rec = rec.Clone()
	h.mux.enqueue(logEntry{record: &rec, handler: h.Handler}, false)
	return nil
}

func (h muxHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	return muxHandler{h.Handler.WithAttrs(attrs), h.mux}
}

func (h muxHandler) WithGroup(name string) slog.Handler {
	return muxHandler{h.Handler.WithGroup(name), h.mux}
}
