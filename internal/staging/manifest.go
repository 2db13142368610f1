package staging

import (
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// ManifestSchema is the version of the manifest's layout. A reader refuses a
// newer one.
const ManifestSchema = 1

// The names inside a task's directory.
const (
	ManifestFile = "manifest.json"
	PayloadDir   = "payload"
	EnvFile      = ".env"
	ValuesFile   = "values.yaml"
	RestoreDir   = "restore" // the release that serves now: payload, .env and values.yaml below it
	EventsFile   = "events.jsonl"
	LogFile      = "deploy.log"
	AttemptsFile = "run.json"
	OutcomeFile  = "outcome.json"
	ReasonFile   = "reason.txt"   // in quarantine: why
	CancelFile   = "cancel"       // an operator asks to cancel the task: why
	RefusalFile  = "refused.json" // why the database does not take the outcome
	ForgetFile   = "forget"       // an operator asks to give up recording the outcome

	forgottenFile = "forgotten.json" // in running, beside the tasks: claims that ended unrecorded
)

// secrets are the entries of a task's directory that leave the disk as soon as
// the run has an outcome.
var secrets = []string{EnvFile, ValuesFile, RestoreDir, PayloadDir}

// Secret reports whether an entry of a task's directory is one that may hold
// secrets, and leaves the disk when the run has an outcome.
func Secret(name string) bool { return slices.Contains(secrets, name) }

// FileType is what a staged entry is.
type FileType string

// The types a manifest may list.
const (
	TypeFile    FileType = "file"
	TypeDir     FileType = "dir"
	TypeSymlink FileType = "symlink"
)

// File is one staged entry, relative to the task's directory.
type File struct {
	Path   string      `json:"path"`
	Type   FileType    `json:"type"`
	Size   int64       `json:"size,omitempty"` // bytes, of files
	Mode   fs.FileMode `json:"mode,omitempty"` // permission bits, of files and directories
	SHA256 string      `json:"sha256,omitempty"`
	Target string      `json:"target,omitempty"` // of symlinks
	// Owner is nil for what belongs to the agent's user.
	Owner *FileOwner `json:"owner,omitempty"`
}

// FileOwner is who a staged entry belongs to, by number.
type FileOwner struct {
	UID int `json:"uid"`
	GID int `json:"gid"`
}

// Release names an artifact of the database.
type Release struct {
	ArtifactID string         `json:"artifact_id"`
	Version    string         `json:"version"`
	ChartType  task.ChartType `json:"chart_type"`
	SHA256     string         `json:"sha256"` // of the artifact, lower-case hex
	Bytes      int64          `json:"bytes"`  // of the artifact as stored
}

// Manifest says what a task's directory holds. It is the last file written
// before the directory is published, and what the runner trusts.
type Manifest struct {
	Schema int        `json:"schema"`
	TaskID task.ID    `json:"task_id"`
	Kind   task.Kind  `json:"kind"`
	Token  task.Token `json:"token"`

	// Release is what to deploy. With a Rejection it may be incomplete.
	Release Release `json:"release"`
	// Unnamed tells that the row of a rollback names no release: Release is the one that
	// the flags say served before. Where they name none, and the deployment target has
	// records of its own, it has neither an id nor a payload.
	Unnamed bool `json:"unnamed,omitempty"`
	// Previous is the release the database says serves now; nil if it names
	// none. PreviousStaged tells that its payload lies under RestoreDir, too;
	// otherwise only its env and values do.
	Previous       *Release `json:"previous,omitempty"`
	PreviousStaged bool     `json:"previous_staged,omitempty"`

	// Offline tells that an operator asked for the task on this host, without the
	// database: there is no row to confirm, Token is the time it was asked for, and
	// Release is one that the deployment target still has, so it has no payload.
	Offline bool `json:"offline,omitempty"`

	// Rejection is why the task cannot be carried out, found before anything was
	// staged. Such a directory has no payload; the runner records the failure.
	Rejection string `json:"refusal,omitempty"`
	// ClaimDelay is how long after DueAt the task was claimed, by the database's clock.
	ClaimDelay time.Duration `json:"late_ns,omitempty"`
	// TakenOver tells that the claim was taken from another one whose lease had
	// run out, so that the release may be half applied.
	TakenOver bool `json:"taken_over,omitempty"`

	// StageAttempts is how often staging was begun, not counting the attempts that a
	// stop of the agent ended: a task that kills its fetcher is not staged forever.
	StageAttempts int `json:"starts,omitempty"`

	DueAt     time.Time `json:"due_at"`
	ClaimedAt time.Time `json:"claimed_at"`
	StagedAt  time.Time `json:"staged_at"`

	Files []File `json:"files"`
}

func (m *Manifest) check() error {
	switch {
	case m.Schema < 1 || m.Schema > ManifestSchema:
		return fmt.Errorf("manifest has schema %d; this agent reads up to %d", m.Schema, ManifestSchema)
	case m.TaskID == "" || m.Token == "":
		return errors.New("manifest names no task or no claim token")
	}
	for _, f := range m.Files {
		if f.Path == "" || path.Clean(f.Path) != f.Path || !fs.ValidPath(f.Path) {
			return fmt.Errorf("manifest lists the unusable path %q", f.Path)
		}
	}
	return nil
}
