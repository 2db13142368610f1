package operator

import (
	"fmt"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/staging"
)

// next says who does what with a directory, and when.
func (i *inspector) next(r *TaskReport) string {
	running := func(role staging.Role, now, later string) string {
		if i.running[role] {
			return "the " + string(role) + " " + now
		}
		return "nobody: the " + string(role) + " is not running; when it starts it " + later
	}
	switch r.State {
	case staging.Tmp:
		return running(staging.Fetcher, "is staging it",
			"asks the database whether the claim still holds, and stages it anew or shreds it")
	case staging.Ready:
		return running(staging.Runner, "takes it as soon as it is free", "takes it, unless its claim was lost meanwhile")
	case staging.Running:
		later := "confirms the claim and deploys it again"
		switch {
		case r.Outcome != nil:
			later = "records the outcome in the database"
		case r.Attempts >= i.MaxAttempts:
			later = fmt.Sprintf("repairs what is half done and records it as failed: %d of %d attempts were made", r.Attempts, i.MaxAttempts)
		case r.Cancel != nil:
			later = "restores what served before and records it as cancelled"
		}
		now := "is deploying it"
		switch {
		case r.Refused != nil:
			now = fmt.Sprintf("tries again at %s to record the outcome, which the database refuses: %s; mend it, or give it up with wrktalk-agent forget", Clock(r.Refused.Next), r.Refused.Reason)
		case r.Outcome != nil:
			now = "is recording the outcome in the database, for as long as that takes"
		case r.Cancel != nil:
			now = "is giving it up, as an operator asked"
		}
		return running(staging.Runner, now, later)
	case staging.Done:
		return running(staging.Notifier, i.nextMail(r.Messages), "goes on with the mail")
	case staging.Trash:
		return running(staging.Notifier, "or the runner is shredding it", "shreds it")
	default:
		return "you: read the reason, look at what serves, then remove the directory; the task itself was ended or is taken up again when its lease runs out"
	}
}

// nextMail says what the notifier does next about a task.
func (i *inspector) nextMail(m *Mail) string {
	if m == nil {
		return "finds out whom to tell"
	}
	pending := m.pending()
	if len(pending) == 0 {
		if i.StagingKeep > 0 {
			return fmt.Sprintf("keeps it: the last %d are kept (staging.keep)", i.StagingKeep)
		}
		return "shreds it"
	}
	first := slices.MinFunc(pending, func(a, b Delivery) int { return a.NextTry.Compare(b.NextTry) }).NextTry
	if wait := first.Sub(i.now); wait > time.Second {
		return fmt.Sprintf("tries the mail again in %s, at %s", wait.Round(time.Second), Clock(first))
	}
	return "is sending the mail"
}
