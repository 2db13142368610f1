package compose

import (
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// TestFirstInstallationFailsAtTheSecondAttempt: what the first attempt left does
// not make the second one an upgrade.
func TestFirstInstallationFailsAtTheSecondAttempt(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
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
	t.Parallel()
	const secret = "correct  horse battery"
	env := "DB_PASSWORD='" + secret + "'\n"
	b := newFixture(t)
	for _, words := range []string{
		strings.Repeat("x", deploy.MaxTailLine-45) + " ${DB_PASSWORD}",
		strings.Repeat("x", deploy.MaxQuote-50) + " ${DB_PASSWORD}",
		"login with ${DB_PASSWORD}",
	} {
		rel := b.release("1.0", map[string]string{"compose.yaml": `
services:
  web:
    image: ` + b.image + `
    command: [crash]
    environment: {APP_LAST_WORDS: "` + words + `"}
`}, env)
		job := b.job(rel, nil)
		job.Compose.StableFor = time.Minute // a slow machine takes a while to crash
		res := b.run(job)
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
	report := deploy.NewReport(io.Discard, nil)
	report.Learn(map[string]string{"DB_PASSWORD": secret})
	if got := report.Tail(text.String(), text.full); len(got) != 1 || got[0] != "one line" {
		t.Errorf("%q", got)
	}
}

// TestSlowCrashLoop: a container that ends later than StableFor, again and
// again, is not up.
func TestSlowCrashLoop(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	// A slow machine takes a while to crash for the first time; later it has what is
	// missing to stableAfterRestart.
	const stableFor, lives = 5 * time.Second, 6 * time.Second
	rel := b.release("1.0", map[string]string{"compose.yaml": fmt.Sprintf(`
services:
  web:
    image: %s
    command: [relapse, /starts, %s]
    restart: always
`, b.image, lives)}, "")
	job := b.job(rel, nil)
	job.Compose.StableFor = stableFor
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var waiting sync.WaitGroup
	b.onEvent("bringing up release", func() {
		waiting.Go(func() {
			b.awaitRestarts(ctx, "web", 2)
			cancel(deploy.ErrTimeout)
		})
	})
	res := b.runContext(ctx, job)
	cancel(nil)
	waiting.Wait()
	failsWith(t, res, `service "web" keeps restarting`)
}
