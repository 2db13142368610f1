package supervisor

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"time"
)

// serve is the actor of the HTTP server. It answers until the last component
// has stopped.
func (s *Supervisor) serve(ln net.Listener) error {
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

// health is the JSON form of /healthz and /readyz.
type health struct {
	OK         bool     `json:"ok"`
	Stopping   bool     `json:"stopping"`
	Staging    string   `json:"staging,omitempty"`
	Components []Status `json:"components"`
}

// answer serves /healthz, 200 unless a component is in a crash loop, and
// /readyz, 200 when every component has reported ready; else both say 503. The
// text, or JSON when the client accepts it, says which and why. /metrics is
// for Prometheus.
func (s *Supervisor) answer(w http.ResponseWriter, r *http.Request) {
	v := s.board.view()
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
func (v view) text(ok bool) string {
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
		fmt.Fprintf(&b, ", %d restarts\n", s.Restarts)
	}
	return b.String()
}
