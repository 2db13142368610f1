package operator

import (
	"errors"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// A task is cancelled where it is: in its row, in its directory, or through the
// database by the agent that has it.
func TestCancelFollowsTheTask(t *testing.T) {
	e := newEnv(t)
	ctx := t.Context()
	pending := e.newTask("1.0.0", nil)
	c, err := e.Cancel(ctx, string(pending)[:8], "wrong version", false)
	if err != nil || c.Did != Cancelled || c.ID != pending {
		t.Fatalf("a pending task: %+v, %v", c, err)
	}
	if row := must(e.FindTask(ctx, string(pending))); row.Status != task.StatusFailed || !strings.Contains(row.ErrorMessage, "(wrong version)") {
		t.Errorf("the row is %s, %q", row.Status, row.ErrorMessage)
	}
	if _, err := e.Cancel(ctx, string(pending), "", false); err == nil || !strings.Contains(err.Error(), "has ended already") {
		t.Errorf("a task that ended: %v", err)
	}

	id := e.newTask("2.0.0", nil)
	claimed := e.claim()
	if _, err := e.Cancel(ctx, string(id), "", false); err == nil || !strings.Contains(err.Error(), "wrktalk-agent migrate") {
		t.Errorf("a task elsewhere, without the agent's schema: %v", err)
	}
	if err := e.DB.Migrate(ctx); err != nil {
		t.Fatal(err)
	}
	if c, err := e.Cancel(ctx, string(id), "", false); err != nil || c.Did != Requested {
		t.Errorf("a task elsewhere: %+v, %v", c, err)
	}

	st := e.publish(claimed)
	if c, err := e.Cancel(ctx, string(id), "too early", false); err != nil || c.Did != Requested || !strings.Contains(c.Message, "no runner is running here") {
		t.Errorf("a task of this host: %+v, %v", c, err)
	}
	root, err := st.Root()
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	if reason, ok, err := staging.CancelRequested(root); !ok || reason != "too early" {
		t.Errorf("the directory says %q, %v, %v", reason, ok, err)
	}
	if c, err := e.Cancel(ctx, string(id), "", true); err != nil || c.Did != Forced {
		t.Errorf("by force: %+v, %v", c, err)
	}
	var name *NameError
	if _, err := e.Cancel(ctx, "abc", "", true); !errors.As(err, &name) {
		t.Errorf("a name that could mean any task: %v", err)
	}
}
