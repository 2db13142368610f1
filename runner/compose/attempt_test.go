package compose

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/docker/compose/v2/pkg/api"
	"github.com/docker/docker/api/types/events"
	"github.com/docker/docker/api/types/filters"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
)

// TestFirstInstallationFailsAtTheSecondAttempt: what the first attempt left does
// not make the second one an upgrade.
func TestFirstInstallationFailsAtTheSecondAttempt(t *testing.T) {
	b := newBench(t)
	text := strings.ReplaceAll(b.web("1.0", "    command: [late]\n"), "APP_VERSION", "APP_DELAY: 1h\n      APP_VERSION")
	one := b.release("1.0", map[string]string{"compose.yaml": text}, "")
	b.half(one, nil)
	res := b.run(b.job(one, nil))
	failsWith(t, res, `service "web" is unhealthy`)
	if b.containers() != 0 || !strings.Contains(res.Message, "the failed release was removed") {
		t.Errorf("%+v", res)
	}
}

// TestMaskedBeforeCut: of a secret that the limit of a text cuts, no part shows.
func TestMaskedBeforeCut(t *testing.T) {
	const secret = "correct  horse battery"
	env := "DB_PASSWORD='" + secret + "'\n"
	b := newBench(t)
	for _, words := range []string{
		strings.Repeat("x", maxTailLine-45) + " ${DB_PASSWORD}",
		strings.Repeat("x", maxQuote-50) + " ${DB_PASSWORD}",
		"login with ${DB_PASSWORD}",
	} {
		rel := b.release("1.0", map[string]string{"compose.yaml": `
services:
  web:
    image: ` + b.image + `
    command: [crash]
    environment: {APP_LAST_WORDS: "` + words + `"}
`}, env)
		res := b.run(b.job(rel, nil))
		failsWith(t, res, "exited with code 1")
		for _, part := range []string{"corr", "horse"} {
			if strings.Contains(res.Error+strings.Join(res.LogTail, "\n"), part) {
				t.Errorf("%q shows: %+v", part, res)
			}
		}
	}

	text := &capped{limit: 40}
	_, _ = text.Write([]byte("one line\nlogin with correct  ho"))
	_, _ = text.Write([]byte("rse battery"))
	if got := tailOf(text, mask.New(map[string]string{"DB_PASSWORD": secret})); len(got) != 1 || got[0] != "one line" {
		t.Errorf("%q", got)
	}
}

// TestSlowCrashLoop: a container that ends later than the settle time, again and
// again, is not up.
func TestSlowCrashLoop(t *testing.T) {
	b := newBench(t)
	// The engine restarts what ended by a signal that is not its stop signal.
	rel := b.release("1.0", map[string]string{"compose.yaml": `
services:
  web:
    image: ` + b.image + `
    restart: always
    stop_signal: SIGQUIT
    stop_grace_period: 1s
`}, "")
	const settle = 2 * time.Second
	ctx, cancel := context.WithCancel(context.Background())
	e, err := connect(ctx, io.Discard, nil)
	if err != nil {
		t.Fatal(err)
	}
	messages, _ := e.api.Events(ctx, events.ListOptions{Filters: filters.NewArgs(
		filters.Arg("label", api.ProjectLabel+"="+b.project), filters.Arg("event", "start"), filters.Arg("event", "die"),
	)})
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer e.close()
		lives := time.Duration(0) // the first time
		dying := ""
		for {
			var again <-chan time.Time
			if dying != "" { // the application may not listen to signals yet
				_ = e.api.ContainerKill(ctx, dying, "INT") // it may be gone
				again = time.After(50 * time.Millisecond)
			}
			select {
			case <-ctx.Done():
				return
			case <-again:
			case m := <-messages:
				dying = ""
				if m.Action == events.ActionStart {
					rest(ctx, lives)
					dying, lives = m.Actor.ID, settle+500*time.Millisecond
				}
			}
		}
	}()
	job := b.job(rel, nil)
	job.Compose.Settle = settle
	res := b.run(job)
	cancel()
	<-done
	failsWith(t, res, `service "web" keeps restarting`)
}
