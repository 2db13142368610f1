//go:build faultinject

package staging_test

import (
	"errors"
	"strings"
	"syscall"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/fault"
	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// failing lets every step whose label contains part fail with EIO.
func failing(t *testing.T, part string) {
	t.Helper()
	hit := false
	restore := fault.Set(func(label string) error {
		if strings.Contains(label, part) {
			hit = true
			return syscall.EIO
		}
		return nil
	})
	t.Cleanup(func() {
		restore()
		if !hit {
			t.Errorf("no step is called %s: the test shows nothing", part)
		}
	})
}

// A rename that was made but could not be flushed has happened for everybody
// else: whoever made it must not go on in the old place.
func TestARenameThatIsVisibleHasHappened(t *testing.T) {
	f := open(t, t.TempDir(), staging.Fetcher)
	failing(t, "durable.rename.synctarget")
	x := stage(t, f) // fails the test unless Publish says that it was published
	if x.State != staging.Ready {
		t.Errorf("the task is in %s", x.State)
	}
	if err := x.Start(); err != nil || x.State != staging.Running {
		t.Errorf("Start returns %v, the task is in %s", err, x.State)
	}
}

// A rename that was not made is an error, and the task stays where it was.
func TestARenameThatFailsIsAnError(t *testing.T) {
	f := open(t, t.TempDir(), staging.Fetcher)
	x := stage(t, f)
	failing(t, "durable.rename.rename")
	if err := x.Start(); err == nil || x.State != staging.Ready {
		t.Errorf("Start returns %v, the task is in %s", err, x.State)
	}
}

// Trash that cannot be shredded keeps no mail back.
func TestTrashThatStaysHindersNobody(t *testing.T) {
	path := t.TempDir()
	f := open(t, path, staging.Fetcher)
	x := stage(t, f)
	failing(t, "shred.")
	_ = x.Remove() // gets as far as the trash at best
	moveTo(t, path, x, staging.Trash)
	n := open(t, path, staging.Notifier)
	if n.RecoveryErr() == nil {
		t.Error("nobody hears of what is left")
	}
}

// A task whose secrets cannot be shredded is not set aside: nobody would shred
// them there.
func TestQuarantineWaitsForTheSecrets(t *testing.T) {
	f := open(t, t.TempDir(), staging.Fetcher)
	x := stage(t, f)
	failing(t, "shred.overwrite")
	if err := x.Quarantine("a test"); !errors.Is(err, syscall.EIO) || x.State != staging.Ready || x.Missing() {
		t.Errorf("Quarantine returns %v, the task is in %s", err, x.State)
	}
}
