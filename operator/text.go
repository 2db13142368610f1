package operator

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// RowText says in words what a row tells about how its task ended.
func RowText(t taskdb.TaskRow) string {
	took := ""
	if t.PickedUpAt != nil && t.CompletedAt != nil {
		took = fmt.Sprintf(" in %s", t.CompletedAt.Sub(*t.PickedUpAt).Round(10*time.Millisecond))
	}
	text := fmt.Sprintf("%s of %s %s%s", t.Kind, OrDash(versionOf(t)), t.Status, took)
	if t.Status == task.StatusFailed {
		text += ": " + t.ErrorMessage
	}
	return text
}

// versionOf returns the release a task is about: the one it names, or the one
// that its result says it came to.
func versionOf(t taskdb.TaskRow) string {
	if t.ReleaseVersion != "" {
		return t.ReleaseVersion
	}
	var result struct {
		Version string `json:"release_version"`
	}
	if json.Unmarshal(t.Result, &result) != nil {
		return ""
	}
	return result.Version
}

// ServingText says in words what serves after a task that failed, and what went wrong
// beside one that completed, as far as the row tells: "" for nothing to add to RowText.
func ServingText(t taskdb.TaskRow) string {
	var result struct {
		Message string `json:"message"`
		Serving string `json:"serving_version"`
	}
	if json.Unmarshal(t.Result, &result) != nil {
		return ""
	}
	if t.Status == task.StatusCompleted && !strings.Contains(result.Message, "; ") {
		return "" // it is up, and that is all
	}
	return withServing(result.Message, result.Serving)
}

// withServing adds to a message what serves, unless it says so itself.
func withServing(message, serving string) string {
	if serving == "" || strings.Contains(message, "release "+serving+" ") && strings.Contains(message, "serve") || strings.Contains(message, "release "+serving+" is up") {
		return message
	}
	return strings.TrimPrefix(message+fmt.Sprintf("; release %s serves", serving), "; ")
}

// ShortIDs returns for each id its first eight characters, or more where others of ids
// begin alike: what every command takes for the task.
func ShortIDs(ids []task.ID) map[task.ID]string {
	short := map[task.ID]string{}
	for _, id := range ids {
		n := min(8, len(id))
		for _, other := range ids {
			for other != id && n < len(id) && strings.HasPrefix(string(other), string(id[:n])) {
				n++
			}
		}
		short[id] = string(id[:n])
	}
	return short
}

// OutcomeText says in words what came of a task.
func OutcomeText(o task.Outcome) string {
	text := fmt.Sprintf("%s of %s %s in %s: %s", o.Kind, OrDash(o.ReleaseVersion), o.Status(), o.Duration().Round(10*time.Millisecond), withServing(o.Message, o.Serving))
	if o.Error != "" {
		text += ": " + o.Error
	}
	return text
}

// OrDash shows a text to a person; nothing is a dash.
func OrDash(s string) string {
	if strings.TrimSpace(s) == "" {
		return "-"
	}
	return s
}

// Clock shows a time to a person; zero is unknown.
func Clock(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format("2006-01-02 15:04:05")
}

// Explain says what went wrong, and what to do about it when that is known of
// the database.
func Explain(err error) string {
	text := err.Error()
	if advice := taskdb.Explain(err); advice != "" && !strings.Contains(text, advice) {
		text += ": " + advice
	}
	return text
}
