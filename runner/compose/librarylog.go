package compose

import (
	"io"
	"sync"

	"github.com/docker/compose/v2/pkg/progress"
	"github.com/sirupsen/logrus"
)

// libraryLog receives the warnings of the Compose library, which knows only one
// logger in a process. Of deployments that run beside each other, as tests do,
// the one begun last gets them.
var libraryLog = sync.OnceValue(func() *switchWriter {
	w := &switchWriter{}
	progress.Mode = progress.ModePlain
	logrus.SetOutput(w)
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	return w
})

// switchWriter writes to whatever it was directed to last.
type switchWriter struct {
	mu     sync.Mutex
	number int
	out    io.Writer
}

// direct sends what comes to out until release is called: nothing is written to
// out afterwards.
func (w *switchWriter) direct(out io.Writer) (release func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.number++
	number := w.number
	w.out = out
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if w.number == number {
			w.out = nil
		}
	}
}

func (w *switchWriter) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.out == nil {
		return len(p), nil
	}
	return w.out.Write(p)
}
