//go:build faultinject

package notifier

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

const crashDir, crashPort = "NOTIFIER_TEST_DIR", "NOTIFIER_TEST_PORT"

// TestCrashingNotifier is the process that TestKilledBeforeTheRecord kills.
func TestCrashingNotifier(t *testing.T) {
	path := os.Getenv(crashDir)
	if path == "" {
		t.Skip("runs only as a process of TestKilledBeforeTheRecord")
	}
	port, err := strconv.Atoi(os.Getenv(crashPort))
	if err != nil {
		t.Fatal(err)
	}
	dir, err := staging.Open(path, staging.Notifier)
	if err != nil {
		t.Fatal(err)
	}
	book := &memoryBook{
		settings: Settings{Host: "127.0.0.1", Port: port, From: "agent@example.com"},
		admins:   []Recipient{{Address: "ada@example.com"}, {Address: "bob@example.com"}},
	}
	t.Fatalf("the notifier ended: %v", New(dir, book, Options{Origin: origin}).Run(t.Context()))
}

// Killed after a mail was taken and before that is written down, the notifier
// repeats what it cannot know to have arrived: same Message-ID, nothing lost.
func TestKilledBeforeTheRecord(t *testing.T) {
	b := newBench(t, "ada@example.com", "bob@example.com")
	b.finished("a", outcomes()["success"])
	if err := b.dir.Close(); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(b.ctx, os.Args[0], "-test.run=^TestCrashingNotifier$")
	child.Env = append(os.Environ(), fault.EnvVar+"=kill:notifier.deliver.record:*:1",
		crashDir+"="+b.path, crashPort+"="+strconv.Itoa(b.server.Port))
	out, err := child.CombinedOutput()
	if st, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
		t.Fatalf("the process was not killed: %v\n%s", err, out)
	}
	before := len(b.server.Mails())
	if before == 0 {
		t.Fatal("nothing was sent before the crash")
	}

	b.open()
	b.run(Options{})
	b.gone()
	ids := map[string]string{}
	mails := b.mails(before + 2) // each of the two was unrecorded
	for i, id := range messageIDs(t, mails) {
		to := mails[i].To[0]
		if known, ok := ids[to]; ok && known != id {
			t.Errorf("the repeated mail to %s has Message-ID %s, was %s", to, id, known)
		}
		ids[to] = id
	}
	if to := slices.Compact(recipients(mails)); !slices.Equal(to, []string{"ada@example.com", "bob@example.com"}) {
		t.Errorf("mails went to %q", to)
	}
}
