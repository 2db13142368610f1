package staging

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// maxEventLine bounds one line of the timeline; an event's text is cut so that
// its line stays below it.
const maxEventLine = 64 << 10

// OnEvent has every event that is appended through t from now on also given to
// f, which must not block.
func (t *Task) OnEvent(f func(task.Event)) { t.onEvent = f }

// Append adds an event to the task's timeline. The timeline is for people: it
// is not synced, and a line that a crash cut short is passed over by Events.
func (t *Task) Append(e task.Event) error {
	e.Text = task.SafeText(e.Text, task.MaxMessage)
	if t.onEvent != nil {
		t.onEvent(e)
	}
	line, err := json.Marshal(e)
	if err != nil {
		return fmt.Errorf("encode event: %w", err)
	}
	return t.withRoot(func(root *os.Root) error {
		f, err := root.OpenFile(EventsFile, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600)
		if err != nil {
			return err
		}
		_, err = f.Write(append(line, '\n'))
		return errors.Join(err, f.Close())
	})
}

// Events returns the task's timeline so far, oldest first.
func (t *Task) Events() ([]task.Event, error) {
	var events []task.Event
	err := t.withRoot(func(root *os.Root) error {
		f, err := root.Open(EventsFile)
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil {
			return err
		}
		defer f.Close()
		sc := bufio.NewScanner(f)
		sc.Buffer(nil, maxEventLine)
		for sc.Scan() {
			var e task.Event
			if json.Unmarshal(sc.Bytes(), &e) == nil {
				events = append(events, e)
			}
		}
		return sc.Err()
	})
	return events, err
}
