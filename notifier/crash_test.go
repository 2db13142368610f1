//go:build faultinject

package notifier_test

import (
	"os"
	"os/exec"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/notifier"
	"github.com/wrktalk/wrktalk-agent/notifier/smtp"
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
	db := &memoryDB{
		settings: taskdb.MailSettings{Host: "127.0.0.1", Port: port, From: "agent@example.com"},
		admins:   []taskdb.Admin{{Email: "ada@example.com"}, {Email: "bob@example.com"}},
	}
	channels := []notifier.Registration{smtp.Register(db.MailSettings, db.ActiveAdmins, smtp.Transport{})}
	t.Fatalf("the notifier ended: %v", notifier.New(dir, notifier.Options{Channels: channels, Origin: origin}).Run(t.Context()))
}

// Killed after a mail was taken and before that is written down, the notifier
// repeats what it cannot know to have arrived: same Message-ID, nothing lost.
func TestKilledBeforeTheRecord(t *testing.T) {
	f := newFixture(t, "ada@example.com", "bob@example.com")
	f.finished("a", outcomes()["success"])
	if err := f.dir.Close(); err != nil {
		t.Fatal(err)
	}
	child := exec.CommandContext(f.ctx, os.Args[0], "-test.run=^TestCrashingNotifier$")
	child.Env = append(os.Environ(), fault.EnvVar+"=kill:notifier.deliver.record:*:1",
		crashDir+"="+f.path, crashPort+"="+strconv.Itoa(f.server.Port))
	out, err := child.CombinedOutput()
	if st, ok := child.ProcessState.Sys().(syscall.WaitStatus); !ok || st.Signal() != syscall.SIGKILL {
		t.Fatalf("the process was not killed: %v\n%s", err, out)
	}
	before := len(f.server.Mails())
	if before == 0 {
		t.Fatal("nothing was sent before the crash")
	}

	f.open()
	f.run(notifier.Options{})
	f.gone()
	ids := map[string]string{}
	mails := f.mails(before + 2) // each of the two was unrecorded
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
