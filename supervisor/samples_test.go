package supervisor

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/telemetry"
)

// What a component reported before it died is kept, life after life, down to the
// last sample.
func TestSamplesOutliveTheComponent(t *testing.T) {
	var sent atomic.Int64
	metrics := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "sent %d", sent.Load()) })
	a := launch(t, Config{
		Components: []Component{comp("notifier", "count")}, Restart: quick, Listen: "127.0.0.1:0", Metrics: metrics,
		Observe: func(s telemetry.Sample) error {
			if s.Metric != telemetry.Mail || s.Labels[0] != telemetry.MailSent {
				return errors.New("nobody keeps it")
			}
			sent.Add(1)
			return nil
		},
	})
	a.out.await(t, 3, "component", "notifier", "msg", "component died")
	if r := a.out.await(t, 1, "component", "notifier", "msg", "ignore a sample"); r.text("error") != "nobody keeps it" {
		t.Errorf("a sample is ignored with %v", r)
	}
	// A death is logged once all was read, and more lives may have followed.
	code, body := a.get(t, "/metrics", "")
	var n int
	if _, err := fmt.Sscanf(body, "sent %d", &n); err != nil || code != 200 || n < 3 {
		t.Errorf("/metrics answers %d %q, want at least 3 samples", code, body)
	}
	if s := a.Statuses()[0]; s.Ready {
		t.Error("a sample is taken for a status")
	}
}

func TestThePageOfMetrics(t *testing.T) {
	a := launch(t, Config{Components: three(), Listen: "127.0.0.1:0"})
	a.awaitReady(t)
	if code, body := a.get(t, "/metrics", ""); code != 404 || !strings.Contains(body, "keeps no metrics") {
		t.Errorf("/metrics without metrics answers %d %q", code, body)
	}
	address := a.out.await(t, 1, "msg", "health is served").text("address")
	resp, err := http.Post("http://"+address+"/healthz", "text/plain", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != 405 {
		t.Errorf("POST is answered with %d, %v", resp.StatusCode, err)
	}
}
