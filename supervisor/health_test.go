package supervisor

import (
	"encoding/json"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestReadyzSaysWhoAndWhy(t *testing.T) {
	a := launch(t, Config{
		Components: []Component{comp("fetcher", "unready", "database is down"), comp("runner", "serve")},
		Listen:     "127.0.0.1:0", Staging: "/srv/staging",
	})
	a.manager.await(t, is("STATUS=fetcher: not ready: database is down; runner: ready"))
	code, body := a.get(t, "/readyz", "")
	if code != 503 || !strings.Contains(body, "fetcher: not ready: database is down") || !strings.Contains(body, "runner: ready") {
		t.Errorf("/readyz answers %d %q", code, body)
	}
	code, body = a.get(t, "/readyz", "application/json")
	var h health
	if err := json.Unmarshal([]byte(body), &h); err != nil {
		t.Fatalf("/readyz answers %q: %v", body, err)
	}
	if h.Staging != "/srv/staging" {
		t.Errorf("/readyz does not say which agent answers: %s", body)
	}
	if code != 503 || h.OK || len(h.Components) != 2 || h.Components[0].Reason != "database is down" || !h.Components[1].Ready {
		t.Errorf("/readyz answers %d %+v", code, h)
	}
	if code, body := a.get(t, "/healthz", ""); code != 200 || !strings.HasPrefix(body, "ok\n") {
		t.Errorf("/healthz answers %d %q, want health without readiness", code, body)
	}
	if code, _ := a.get(t, "/", ""); code != 404 {
		t.Errorf("/ answers %d, want 404", code)
	}
}

func TestReadyzWhenAllAreReady(t *testing.T) {
	a := launch(t, Config{Components: append(three(), Component{
		Name: "last", Args: []string{"component", "last", "slow"}, StopTimeout: -1,
	}), Listen: "127.0.0.1:0"})
	a.awaitReady(t)
	if code, body := a.get(t, "/readyz", ""); code != 200 {
		t.Errorf("/readyz answers %d %q", code, body)
	}
	// It is served until the last one has stopped.
	a.signals <- syscall.SIGTERM
	a.out.await(t, 1, "component", "last", "msg", "asked to stop")
	if code, body := a.get(t, "/readyz", ""); code != 503 || !strings.HasPrefix(body, "stopping\n") {
		t.Errorf("/readyz answers %d %q while stopping", code, body)
	}
}

func TestADeadComponentIsNotReady(t *testing.T) {
	a := launch(t, Config{
		Components: []Component{comp("fetcher", "exit", "3")},
		Backoff:    Backoff{Min: time.Hour, Max: time.Hour}, Listen: "127.0.0.1:0",
	})
	a.manager.await(t, func(s string) bool { return strings.Contains(s, "component died (exit status 3), next start in") })
	if code, body := a.get(t, "/readyz", ""); code != 503 || !strings.Contains(body, "exit status 3") {
		t.Errorf("/readyz answers %d %q", code, body)
	}
}

func TestAPortInUseStopsNothing(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	a := launch(t, Config{Components: three(), Listen: ln.Addr().String()})
	a.awaitReady(t)
	r := a.out.await(t, 1, "component", "supervisor", "level", "ERROR")
	if !strings.Contains(r.text("error"), "address already in use") || !strings.Contains(r.text("msg"), "http.listen") {
		t.Errorf("a port in use is reported as %v", r)
	}
}

func TestTellsTheServiceManager(t *testing.T) {
	a := launch(t, Config{Components: three(), Watchdog: 20 * time.Millisecond})
	a.manager.await(t, is("STATUS=fetcher: ready; runner: ready; notifier: ready"))
	a.awaitReady(t)
	for range 3 {
		a.manager.await(t, is("WATCHDOG=1"))
	}
	a.signals <- syscall.SIGTERM
	a.manager.await(t, is("STOPPING=1"))
	a.manager.await(t, func(s string) bool { return strings.HasPrefix(s, "EXTEND_TIMEOUT_USEC=") })
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}
