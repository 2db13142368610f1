package maintenance_test

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/maintenance"
)

// app is an application that says which version it is.
type app struct {
	address string
	version atomic.Pointer[string]
	asked   atomic.Int64
	waiting chan struct{} // receives for each request of /slow that has come in
	release chan struct{} // closed to let them go
	once    sync.Once
}

func newApp(t *testing.T) *app {
	a := &app{waiting: make(chan struct{}, 100), release: make(chan struct{})}
	a.serve("old")
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.asked.Add(1)
		version := *a.version.Load()
		if r.URL.Path == "/slow" {
			a.waiting <- struct{}{}
			<-a.release
		}
		fmt.Fprintln(w, version)
	}))
	t.Cleanup(server.Close)
	t.Cleanup(a.answerSlow)
	a.address = strings.TrimPrefix(server.URL, "http://")
	return a
}

func (a *app) serve(version string) { a.version.Store(&version) }
func (a *app) answerSlow()          { a.once.Do(func() { close(a.release) }) }

// newSwitch returns a switch with time enough for a slow machine, unless opts
// say what must be over.
func newSwitch(t *testing.T, opts maintenance.Options) *maintenance.Switch {
	t.Helper()
	if opts.Timeout == 0 {
		opts.Timeout = 2 * time.Minute
	}
	if opts.Drain == 0 {
		opts.Drain = 30 * time.Second
	}
	if opts.StateFile == "" {
		opts.StateFile = filepath.Join(t.TempDir(), "maintenance.json")
	}
	if opts.Logger == nil {
		opts.Logger = slog.New(slog.NewTextHandler(io.Discard, nil))
	}
	s, err := maintenance.New(opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok says so, or the test's patience ends.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(2 * time.Minute)
	for !ok() {
		select {
		case <-late:
			t.Fatalf("waited in vain: %s", what)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// state fails the test unless State says on and byUs.
func state(t *testing.T, s *maintenance.Switch, on, byUs bool) {
	t.Helper()
	gotOn, gotByUs, err := s.State(t.Context())
	must(t, err)
	if gotOn != on || gotByUs != byUs {
		t.Errorf("State() = on %v, by us %v; want %v, %v", gotOn, gotByUs, on, byUs)
	}
}

// says fails the test unless err holds every one of the texts, on one line.
func says(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatalf("no error, want one that says %q", texts)
	}
	if strings.Contains(err.Error(), "\n") {
		t.Errorf("error of several lines: %q", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not say %q", err, text)
		}
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// get asks the site once.
func get(t *testing.T, method, url string) (status int, header http.Header, body string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader("x=1"))
	must(t, err)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	must(t, err)
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, resp.Header, string(b)
}

// deploy is a deployment under load: it fails the test unless each client saw
// the old version, the page and the new version, in this order and nothing else.
func deploy(t *testing.T, s *maintenance.Switch, a *app, url string, meanwhile func()) {
	t.Helper()
	load := testenv.NewLoad(t, url, 8)
	load.Round()
	must(t, s.Enter(t.Context(), "task-1"))
	asked := a.asked.Load()
	a.serve("half-deployed")
	load.Round()
	if meanwhile != nil {
		meanwhile()
		load.Round()
	}
	if n := a.asked.Load() - asked; n != 0 {
		t.Errorf("%d requests reached the half-deployed application", n)
	}
	state(t, s, true, true)
	a.serve("new")
	must(t, s.Leave(t.Context(), "task-1"))
	load.Round()
	load.Round()
	if err := testenv.InOrder(load.Stop(), "old", "503", "new"); err != nil {
		t.Error(err)
	}
	state(t, s, false, false)
}

// page fails the test unless clients get the shipped page, whatever they ask.
func page(t *testing.T, url string) {
	t.Helper()
	for _, method := range []string{http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete} {
		for _, path := range []string{"/", "/any/where?x=1"} {
			status, header, body := get(t, method, url+path)
			if status != http.StatusServiceUnavailable || header.Get("Retry-After") != "30" ||
				header.Get("Cache-Control") != "no-store" || !strings.Contains(body, "WrkTalk is being updated") ||
				header.Get("Content-Type") != "text/html; charset=utf-8" {
				t.Fatalf("%s %s: status %d, header %v, body %.80q", method, path, status, header, body)
			}
		}
	}
}
