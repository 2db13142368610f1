package task

import (
	"strings"
	"time"
	"unicode/utf8"
)

// OutcomeSchema is the version of the outcome file's layout. A reader refuses
// a newer one.
const OutcomeSchema = 1

// Outcome is what came of a task: written to disk by the runner before the
// database hears of it, and read by the notifier afterwards. Every text in it
// is fit to show to an administrator: secrets are masked by whoever fills it.
type Outcome struct {
	Schema int   `json:"schema"`
	TaskID ID    `json:"task_id"`
	Kind   Kind  `json:"kind"`
	Token  Token `json:"token"`
	// Offline tells that the task was asked for on the agent's host while the
	// database was away: it has no row until its outcome is recorded.
	Offline bool `json:"offline,omitempty"`

	Succeeded bool   `json:"succeeded"`
	Message   string `json:"message"`         // one sentence for people
	Error     string `json:"error,omitempty"` // the cause; empty on success

	ArtifactID     string    `json:"artifact_id,omitempty"`
	ReleaseVersion string    `json:"release_version,omitempty"`
	ChartType      ChartType `json:"chart_type,omitempty"`
	HelmRevision   int       `json:"helm_revision,omitempty"`

	// Serving is the release version that serves now, "" when nothing does or
	// it is not known. Restored is true when a failed release was replaced by
	// the one that served before.
	Serving  string `json:"serving,omitempty"`
	Restored bool   `json:"restored,omitempty"`

	LogTail    []string  `json:"log_tail,omitempty"` // the last lines said, oldest first
	StartedAt  time.Time `json:"started_at"`
	FinishedAt time.Time `json:"finished_at"`
}

// Status returns the status the task ends in.
func (o Outcome) Status() Status {
	if o.Succeeded {
		return StatusCompleted
	}
	return StatusFailed
}

// Duration returns how long the run took; never negative.
func (o Outcome) Duration() time.Duration {
	return max(0, o.FinishedAt.Sub(o.StartedAt))
}

// Notice is what a mail announces.
type Notice string

// The four notices of the v4.2 reference.
const (
	NoticeSuccess         Notice = "SUCCESS"
	NoticeFailed          Notice = "FAILED"
	NoticeRollbackSuccess Notice = "ROLLBACK_SUCCESS"
	NoticeRollbackFailed  Notice = "ROLLBACK_FAILED"
)

// Notice returns what the mail about o announces. A task of an unknown kind
// can only have failed.
func (o Outcome) Notice() Notice {
	switch {
	case o.Kind == KindRollback && o.Succeeded:
		return NoticeRollbackSuccess
	case o.Kind == KindRollback:
		return NoticeRollbackFailed
	case o.Succeeded:
		return NoticeSuccess
	default:
		return NoticeFailed
	}
}

// Result returns the value of agent_task.result: the reference's keys, and
// what the agent adds to them. The texts are sanitised, so that PostgreSQL
// accepts the document whatever a program printed.
func (o Outcome) Result() map[string]any {
	r := map[string]any{
		"status":           "success",
		"message":          SafeText(o.Message, MaxMessage),
		"release_version":  SafeText(o.ReleaseVersion, MaxMessage),
		"duration_seconds": o.Duration().Seconds(),
	}
	if !o.Succeeded {
		r["status"] = "failed"
		r["error"] = SafeText(o.Error, MaxMessage)
	}
	if o.HelmRevision > 0 {
		r["helmRevision"] = o.HelmRevision
	}
	if o.Serving != "" {
		r["serving_version"] = SafeText(o.Serving, MaxMessage)
	}
	if o.Restored {
		r["restored"] = true
	}
	if o.Offline {
		r["offline"] = true
		r["finished_at"] = o.FinishedAt.UTC().Format(time.RFC3339)
	}
	return r
}

// MaxMessage is the largest text, in bytes, that is written to the database or
// a mail header in one piece.
const MaxMessage = 8 << 10

// SafeText makes s fit for a PostgreSQL text or jsonb value and for a log
// line's single field: valid UTF-8, no NUL, at most limit bytes. What is cut
// off is marked by an ellipsis.
//
// PostgreSQL rejects NUL and invalid UTF-8 in text, and \u0000 in jsonb; a
// write-back that carries one would fail for ever.
func SafeText(s string, limit int) string {
	s = strings.ToValidUTF8(s, "\uFFFD")
	s = strings.ReplaceAll(s, "\x00", "\uFFFD")
	if len(s) <= limit {
		return s
	}
	const mark = "…"
	cut := max(0, limit-len(mark))
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + mark
}

// Shorten is SafeText for the text of an error: what does not fit is left out in
// the middle, for an error begins with where it happened and ends with what it was.
func Shorten(s string, limit int) string {
	s = SafeText(s, len(s)*utf8.UTFMax)
	const mark = " … "
	if len(s) <= limit || limit <= len(mark) {
		return SafeText(s, limit)
	}
	head := (limit - len(mark)) / 3
	tail := len(s) - (limit - len(mark) - head)
	for head > 0 && !utf8.RuneStart(s[head]) {
		head--
	}
	for tail < len(s) && !utf8.RuneStart(s[tail]) {
		tail++
	}
	return s[:head] + mark + s[tail:]
}
