package supervisor

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"
)

// listenRetry is how often an address is tried that could not be had.
var listenRetry = 5 * time.Second

// Listen listens on address, host:port, for the supervisor's pages. Its error is
// one sentence that names the setting.
func Listen(address string) (net.Listener, error) {
	ln, err := net.Listen("tcp", address)
	if err == nil {
		return ln, nil
	}
	var op *net.OpError
	if errors.As(err, &op) {
		err = op.Err // without the address once more
	}
	var call *os.SyscallError
	if errors.As(err, &call) {
		err = call.Err
	}
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil, fmt.Errorf("health cannot be served on %s: %w: end what uses it, or set http.listen to another address or to off", address, err)
	}
	return nil, fmt.Errorf("health cannot be served on %s: %w: set http.listen to an address of this host, or to off", address, err)
}

// listen returns what to serve on, as soon as it can be had, or nil when the last
// component has stopped before that.
func (s *Supervisor) listen() net.Listener {
	ln := s.cfg.Listener
	tick := time.NewTicker(listenRetry)
	defer tick.Stop()
	for first := true; ln == nil; first = false {
		var err error
		if ln, err = Listen(s.cfg.Listen); err == nil {
			break
		}
		if first {
			s.log.Error(err.Error()+"; going on without it, and trying again", "component", "supervisor")
		}
		select {
		case <-s.allStopped:
			return nil
		case <-tick.C:
		}
	}
	s.log.Info("health is served", "component", "supervisor", "address", ln.Addr().String())
	return ln
}

// serve is the actor of the HTTP server. It answers until the last component
// has stopped.
func (s *Supervisor) serve() error {
	ln := s.listen()
	if ln == nil {
		return nil
	}
	srv := &http.Server{
		Handler:        http.HandlerFunc(s.answer),
		ReadTimeout:    5 * time.Second,
		WriteTimeout:   5 * time.Second,
		MaxHeaderBytes: 8 << 10,
	}
	srv.SetKeepAlivesEnabled(false) // a connection of a monitor costs memory
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	select {
	case err := <-served:
		s.log.Error("serve health: go on without; restart the agent to have it again", "component", "supervisor", "error", err)
		<-s.allStopped
	case <-s.allStopped:
		_ = srv.Close()
		<-served
	}
	return nil
}

// allowed reports whether the pages may be asked for by the host of a request.
func (s *Supervisor) allowed(host string) bool {
	host = hostOf(host)
	if _, err := netip.ParseAddr(host); err == nil || host == "" || host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true // no name that could lead here by another's doing
	}
	own, _ := os.Hostname()
	return slices.ContainsFunc(append([]string{s.cfg.Listen, own}, s.cfg.AllowedHosts...), func(name string) bool {
		return name == "*" || hostOf(name) == host
	})
}

// hostOf returns the name or address of a Host header or a setting, without port
// and brackets and in the spelling that names are compared in.
func hostOf(s string) string {
	if host, _, err := net.SplitHostPort(s); err == nil {
		s = host
	}
	s = strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")
	return strings.TrimSuffix(strings.ToLower(s), ".")
}

// health is the JSON form of /healthz and /readyz.
type health struct {
	OK         bool     `json:"ok"`
	Stopping   bool     `json:"stopping"`
	Staging    string   `json:"staging,omitempty"`
	Components []Status `json:"components"`
}

// answer serves /healthz, 200 unless a component is in a crash loop or hangs, and
// /readyz, 200 when every component has reported ready; else both say 503. The
// text, or JSON when the client accepts it, says which and why. /metrics is
// for Prometheus.
func (s *Supervisor) answer(w http.ResponseWriter, r *http.Request) {
	if !s.allowed(r.Host) {
		http.Error(w, fmt.Sprintf("this agent does not answer to the name %.100q: ask it by its address, or add the name to http.allowed_hosts", hostOf(r.Host)), http.StatusMisdirectedRequest)
		return
	}
	v := s.status.snapshot()
	var ok bool
	switch r.URL.Path {
	case "/healthz":
		ok = v.healthy()
	case "/readyz":
		ok = v.ready()
	case "/metrics":
		if s.cfg.Metrics == nil {
			http.Error(w, "not found: this agent keeps no metrics", http.StatusNotFound)
			return
		}
	default:
		http.Error(w, "not found: try /healthz, /readyz or /metrics", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "only GET and HEAD", http.StatusMethodNotAllowed)
		return
	}
	if r.URL.Path == "/metrics" {
		s.cfg.Metrics.ServeHTTP(w, r)
		return
	}
	code := http.StatusOK
	if !ok {
		code = http.StatusServiceUnavailable
	}
	w.Header().Set("Cache-Control", "no-store")
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(code)
		_ = json.NewEncoder(w).Encode(health{OK: ok, Stopping: v.stopping, Staging: s.cfg.Staging, Components: v.list})
		return
	}
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	_, _ = io.WriteString(w, v.text(ok))
}

// text is the page for people.
func (v statusSnapshot) text(ok bool) string {
	var b strings.Builder
	switch {
	case v.stopping:
		b.WriteString("stopping\n")
	case ok:
		b.WriteString("ok\n")
	default:
		b.WriteString("not ok\n")
	}
	for _, s := range v.list {
		b.WriteString(s.String())
		if s.CrashLoop {
			b.WriteString(" (crash loop)")
		}
		if s.Hanging {
			b.WriteString(" (no sign of life)")
		}
		fmt.Fprintf(&b, ", %d restarts\n", s.Restarts)
	}
	return b.String()
}
