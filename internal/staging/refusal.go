package staging

import (
	"errors"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/durable"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Refusal is what the runner notes about an outcome that the database refuses to
// record, as opposed to a database that is away.
type Refusal struct {
	Reason string    `json:"reason"` // what the database said last
	Since  time.Time `json:"since"`
	Tries  int       `json:"tries"`
	Next   time.Time `json:"next_try"`
	// LetsPass tells that later tasks may be carried out and recorded meanwhile: the
	// outcome says nothing about what serves, or the database knows that already.
	LetsPass bool `json:"lets_pass"`
}

// Refusal returns what SaveRefusal wrote; nil when nothing was, or it cannot be
// read, so that the outcome is recorded in its turn.
func (t *Task) Refusal() *Refusal {
	r := new(Refusal)
	if err := t.withRoot(func(root *os.Root) error { return readJSON(root, RefusalFile, r) }); err != nil {
		return nil
	}
	return r
}

// SaveRefusal writes r durably.
func (t *Task) SaveRefusal(r Refusal) error { return t.writeJSON(RefusalFile, r, true) }

// RequestForget writes an operator's request to give up recording the task's
// outcome where its runner looks for it. As root it works on a directory of the
// agent's user.
func (t *Task) RequestForget() error {
	return t.withRoot(func(root *os.Root) error { return leaveFile(root, ForgetFile, nil) })
}

// ForgetRequested reports whether RequestForget was called.
func (t *Task) ForgetRequested() bool {
	err := t.withRoot(func(root *os.Root) error { _, err := root.Lstat(ForgetFile); return err })
	return err == nil
}

// Claim names one claim of a task.
type Claim struct {
	TaskID task.ID    `json:"task_id"`
	Token  task.Token `json:"token"`
}

// maxForgotten is how many claims are remembered: the oldest go first.
const maxForgotten = 1000

// Forgotten returns the claims of this host that have ended without a record in the
// database: whatever that says, they are not to be gone on with.
func (d *Dir) Forgotten() ([]Claim, error) {
	var claims []Claim
	err := readJSON(d.states[Running], forgottenFile, &claims)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return claims, err
}

// Forget remembers a claim for Forgotten. The runner calls it.
func (d *Dir) Forget(c Claim) error {
	claims, err := d.Forgotten()
	if err != nil || slices.Contains(claims, c) {
		return err
	}
	claims = append(claims, c)
	data, err := encode(claims[max(0, len(claims)-maxForgotten):], true)
	if err != nil {
		return err
	}
	return durable.WriteFile(d.states[Running], forgottenFile, data, 0o600)
}
