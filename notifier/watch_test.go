package notifier

import (
	"bufio"
	"net"
	"testing"

	"github.com/fsnotify/fsnotify"
)

// takeNothing is a mail server that never speaks until its client goes.
func takeNothing(_ net.Conn, r *bufio.Reader) { _, _ = r.ReadByte() }

// hangUp is a mail server that wants no client.
func hangUp(c net.Conn, _ *bufio.Reader) { _ = c.Close() }

// watchFile tells when something in a directory changes.
func watchFile(t *testing.T, dir string) <-chan fsnotify.Event {
	t.Helper()
	w, err := fsnotify.NewBufferedWatcher(64)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.Close() })
	if err := w.Add(dir); err != nil {
		t.Fatal(err)
	}
	return w.Events
}
