package telemetry

import (
	"slices"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

func TestStopwatchEndsEachPhaseOnce(t *testing.T) {
	var phases []string
	s := Stopwatch{Metrics: func(s Sample) {
		if s.Metric != PhaseEnded || s.Value < 0 {
			t.Errorf("sample %+v", s)
		}
		phases = append(phases, s.Labels...)
	}}
	s.Stop()
	for _, p := range []task.Phase{task.PhaseVerifying, task.PhaseApplying, task.PhaseApplying, task.PhaseWaiting} {
		s.Enter(p)
	}
	s.Stop()
	s.Stop()
	s.Enter(task.PhaseWaiting) // of the next run
	s.Stop()
	if want := []string{"verifying", "applying", "waiting", "waiting"}; !slices.Equal(phases, want) {
		t.Errorf("phases %v ended, want %v", phases, want)
	}
}

func TestAnUnknownKindMakesNoSeriesOfItsOwn(t *testing.T) {
	var got []string
	m := Recorder(func(s Sample) { got = append(got, s.Labels...) })
	m.TaskEnded("rm -rf", task.StatusFailed)
	m.TaskEnded(task.KindRollback, task.StatusCompleted)
	if want := []string{"other", "failed", "rollback", "completed"}; !slices.Equal(got, want) {
		t.Errorf("labels are %v, want %v", got, want)
	}
}

func TestANilRecorderRecordsNothing(t *testing.T) {
	var m Recorder
	m.Polled()
	s := Stopwatch{}
	s.Enter(task.PhaseStaging)
	s.Stop()
}
