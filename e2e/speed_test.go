package e2e

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// BenchmarkRowToDone deploys the same change twice, side by side: with the
// standard Compose command line, and by inserting a row and waiting until its
// status is completed. It reports the agent's time over the command line's.
func BenchmarkRowToDone(b *testing.B) {
	for name, interval := range map[string]time.Duration{"no health check": 0, "health check": 200 * time.Millisecond} {
		b.Run(name, func(b *testing.B) { rowToDone(b, interval) })
	}
}

func rowToDone(b *testing.B, health time.Duration) {
	w := newWorld(b, "WRKTALK_AGENT_POLL_INTERVAL=1m", "WRKTALK_AGENT_HEARTBEAT_INTERVAL=1m")
	cli := testenv.ComposeCLI(b)
	image := testenv.AppImageWith(b, "1.0.0", health)
	bundle := compose(image, "environment: {GREETING: '${GREETING}'}", "stop_grace_period: 0s")
	if _, stderr, code := w.command("migrate"); code != 0 {
		b.Fatal(stderr)
	}
	w.run()
	ctx := context.Background()
	db, err := taskdb.Open(ctx, taskdb.Options{ConnString: w.db.Server.URL(w.db.Name)})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()

	dir := b.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte(bundle["docker-compose.yaml"]), 0o600); err != nil {
		b.Fatal(err)
	}
	other := testenv.ComposeProject(b)
	byHand := func(n int) time.Duration {
		env := fmt.Sprintf("GREETING=release-%d\n", n)
		if err := os.WriteFile(filepath.Join(dir, ".env"), []byte(env), 0o600); err != nil {
			b.Fatal(err)
		}
		start := time.Now()
		cmd := exec.Command(cli, "-p", other, "--project-directory", dir, "up", "-d", "--wait", "--remove-orphans")
		var said bytes.Buffer
		cmd.Stdout, cmd.Stderr = &said, &said
		if err := cmd.Run(); err != nil {
			b.Fatalf("%v: %s", err, said.String())
		}
		return time.Since(start)
	}
	byRow := func(n int) time.Duration {
		artifact := w.release(fmt.Sprintf("1.%d.0", n), bundle.tarball(b), fmt.Sprintf("GREETING=release-%d\n", n))
		start := time.Now()
		id, err := db.AddTask(ctx, taskdb.NewTask{Kind: task.KindDeploy, ArtifactID: &artifact})
		if err != nil {
			b.Fatal(err)
		}
		for {
			row, err := db.Task(ctx, id)
			if err != nil {
				b.Fatal(err)
			}
			if row.Status == task.StatusCompleted {
				return time.Since(start)
			}
			if row.Status.Final() {
				b.Fatalf("task failed: %s", row.ErrorMessage)
			}
			time.Sleep(2 * time.Millisecond) // of what is measured, it takes nothing
		}
	}
	byHand(0)
	byRow(0)
	var hand, row time.Duration
	n := 0
	for b.Loop() {
		n++
		hand += byHand(n)
		row += byRow(n)
	}
	b.ReportMetric(hand.Seconds()/float64(n), "cli-s/op")
	b.ReportMetric(row.Seconds()/float64(n), "agent-s/op")
	b.ReportMetric(row.Seconds()/hand.Seconds(), "agent/cli")
}
