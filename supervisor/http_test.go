package supervisor

import (
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
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
		Restart:    RestartPolicy{Min: time.Hour, Max: time.Hour}, Listen: "127.0.0.1:0",
	})
	a.manager.await(t, func(s string) bool { return strings.Contains(s, "component died (exit status 3), next start in") })
	if code, body := a.get(t, "/readyz", ""); code != 503 || !strings.Contains(body, "exit status 3") {
		t.Errorf("/readyz answers %d %q", code, body)
	}
}

// A port in use stops nothing, and is served on when it is free.
func TestAPortInUse(t *testing.T) {
	former := listenRetry
	listenRetry = 10 * time.Millisecond
	t.Cleanup(func() { listenRetry = former })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	address := ln.Addr().String()
	want := "health cannot be served on " + address + ": address already in use: end what uses it, or set http.listen"

	a := launch(t, Config{Components: three(), Listen: address})
	a.awaitReady(t)
	r := a.out.await(t, 1, "component", "supervisor", "level", "ERROR")
	if !strings.HasPrefix(r.text("msg"), want) {
		t.Errorf("a port in use is reported as %v", r)
	}
	ln.Close()
	if code, body := a.get(t, "/readyz", ""); code != 200 {
		t.Errorf("/readyz answers %d %q", code, body)
	}
}

// The pages answer to addresses and to names that nobody else can let lead here:
// not to one that a stranger's name server made point to this host.
func TestAForeignNameIsRefused(t *testing.T) {
	own, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	a := prepare(t, Config{Components: three(), Listen: "agent.internal:9471", AllowedHosts: []string{"deploy.example.com", "Other.Example.Com"}})
	for host, want := range map[string]int{
		"127.0.0.1:9471": 200, "[::1]:9471": 200, "::1": 200, "10.1.2.3": 200, "10.1.2.3:9471": 200, "[fe80::1%25eth0]:9471": 200,
		"localhost": 200, "LocalHost.:9471": 200, "x.localhost:9471": 200, own: 200, own + ":9471": 200, "": 200,
		"agent.internal:9471": 200, "AGENT.internal": 200, "deploy.example.com:80": 200, "other.example.com": 200,
		"evil.example": 421, "evil.example:9471": 421, "127.0.0.1.evil.example": 421, "localhost.evil.example": 421,
		own + ".evil.example": 421, "deploy.example.com.evil.example": 421, "notlocalhost": 421, "*": 421, "[evil]:80": 421, "1.2.3.4.5": 421,
	} {
		for _, page := range []string{"/readyz", "/healthz", "/metrics", "/"} {
			r := httptest.NewRequest(http.MethodGet, page, nil)
			r.Host = host
			w := httptest.NewRecorder()
			a.answer(w, r)
			if got := w.Code == http.StatusMisdirectedRequest; got != (want == 421) {
				t.Errorf("%s as %q answers %d", page, host, w.Code)
			}
			if want == 421 && (!strings.Contains(w.Body.String(), "http.allowed_hosts") || strings.Count(w.Body.String(), "\n") != 1) {
				t.Errorf("%s as %q answers %q", page, host, w.Body.String())
			}
		}
	}
	a = prepare(t, Config{Components: three(), AllowedHosts: []string{"*"}})
	if !a.allowed("any.example:1") {
		t.Error("* does not allow any")
	}
}

func TestTellsTheServiceManager(t *testing.T) {
	a := launch(t, Config{Components: three(), Watchdog: time.Millisecond, Listen: "127.0.0.1:0"})
	a.manager.await(t, is("STATUS=fetcher: ready; runner: ready; notifier: ready"))
	a.awaitReady(t)
	for range 3 {
		a.manager.await(t, is("WATCHDOG=1"))
	}
	// One that hangs, and that killing does not end: only the service manager can help.
	a.status.update(1, func(s *Status) { s.Hanging = true })
	if code, body := a.get(t, "/healthz", ""); code != 503 || !strings.Contains(body, "runner") || !strings.Contains(body, "no sign of life") {
		t.Errorf("/healthz answers %d %q", code, body)
	}
	for i := range 20 {
		said := fmt.Sprintf("change %d", i)
		a.status.update(0, func(s *Status) { s.Ready, s.Reason = false, said })
		a.manager.await(t, func(line string) bool {
			if line == "WATCHDOG=1" && i > 1 { // earlier ones may have been on their way
				t.Error("the watchdog is told that all is well")
			}
			return strings.Contains(line, said)
		})
	}
	a.status.update(1, func(s *Status) { s.Hanging = false })
	a.manager.await(t, is("WATCHDOG=1"))
	a.signals <- syscall.SIGTERM
	a.manager.await(t, is("STOPPING=1"))
	a.manager.await(t, func(s string) bool { return strings.HasPrefix(s, "EXTEND_TIMEOUT_USEC=") })
	if err := a.awaitEnd(t); err != nil {
		t.Fatal(err)
	}
}
