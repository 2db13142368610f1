package operator

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// recorder keeps what is reported about a task.
type recorder struct {
	events chan task.Event
	status task.Status
}

func newRecorder() *recorder { return &recorder{events: make(chan task.Event, 100)} }

func (r *recorder) Event(e task.Event)   { r.events <- e }
func (r *recorder) Waiting(string)       {}
func (r *recorder) Poll(now task.Status) { r.status = now }

func (r *recorder) await(ctx context.Context, t *testing.T, text string) {
	t.Helper()
	select {
	case e := <-r.events:
		if e.Text != text {
			t.Fatalf("reported is %q, want %q", e.Text, text)
		}
	case <-ctx.Done():
		t.Fatalf("%q is never reported", text)
	}
}

// An event that is read in the staging directory and then in the database is
// reported once, and the row is returned when the task has ended.
func TestFollowReportsEachEventOnce(t *testing.T) {
	e := newEnv(t)
	if err := e.DB.Migrate(t.Context()); err != nil {
		t.Fatal(err)
	}
	id := e.newTask("1.0.0", nil)
	claimed := e.claim()
	st := e.publish(claimed)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	staged := task.Event{Time: time.Now(), Component: "fetcher", Phase: task.PhaseReady, Text: "staged it"}
	if err := st.Append(staged); err != nil {
		t.Fatal(err)
	}
	r := newRecorder()
	ended := make(chan error, 1)
	go func() {
		row, err := e.Follow(ctx, id, r)
		if err == nil && row.Status != task.StatusCompleted {
			err = errors.New("the row is " + string(row.Status))
		}
		ended <- err
	}()
	r.await(ctx, t, "staged it")
	if err := st.Remove(); err != nil {
		t.Fatal(err)
	}
	applying := task.Event{Time: time.Now(), Component: "runner", Phase: task.PhaseApplying, Text: "bringing it up"}
	if err := e.DB.AppendEvents(ctx, id, claimed.Token, []task.Event{staged, applying}); err != nil {
		t.Fatal(err)
	}
	r.await(ctx, t, "bringing it up")
	o := task.Outcome{
		Schema: task.OutcomeSchema, TaskID: id, Kind: claimed.Kind, Token: claimed.Token, ArtifactID: claimed.ArtifactID,
		ReleaseVersion: "1.0.0", Succeeded: true, StartedAt: time.Now(), FinishedAt: time.Now(),
	}
	if err := e.DB.Finish(ctx, o); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if len(r.events) > 0 {
		t.Errorf("reported again: %+v", <-r.events)
	}
	if r.status != task.StatusInProgress {
		t.Errorf("the status was %q", r.status)
	}
	l, err := e.RecordedTaskLog(ctx, must(e.FindTask(ctx, string(id)[:8])))
	if err != nil || len(l.Events) != 2 || !slices.IsSortedFunc(l.Events, func(a, b task.Event) int { return a.Time.Compare(b.Time) }) {
		t.Errorf("recorded is %+v, %v", l.Events, err)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// Who stops following is told that the task goes on.
func TestFollowEndsWithItsContext(t *testing.T) {
	e := newEnv(t)
	id := e.newTask("1.0.0", nil)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := e.Follow(ctx, id, newRecorder()); err == nil || !strings.Contains(err.Error(), "it goes on") {
		t.Errorf("it ended with %v", err)
	}
}

// A rollback without the database is followed to its outcome; when its directory
// went before that was seen, the caller asks the database.
func TestFollowOfflineEndsWithTheOutcome(t *testing.T) {
	e := &env{Client: &Client{}}
	dir, st := running(t)
	e.StagingDir = dir.Path()
	const id = "1397f0f1-0000-4000-8000-000000000001"
	if err := st.SaveOutcome(task.Outcome{Schema: task.OutcomeSchema, Message: "it is up"}); err != nil {
		t.Fatal(err)
	}
	if o, err := e.FollowOffline(t.Context(), id, newRecorder()); err != nil || o.Message != "it is up" {
		t.Errorf("ended with %+v, %v", o, err)
	}
	if err := st.Remove(); err != nil {
		t.Fatal(err)
	}
	if _, err := e.FollowOffline(t.Context(), id, newRecorder()); !errors.Is(err, ErrShredded) {
		t.Errorf("without a directory: %v", err)
	}
}
