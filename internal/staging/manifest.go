package staging

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
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
	RestoreDir   = "restore" // the previous release: payload, .env and values.yaml below it
	EventsFile   = "events.jsonl"
	LogFile      = "deploy.log"
	RunFile      = "run.json"
	OutcomeFile  = "outcome.json"
	ReasonFile   = "reason.txt" // in quarantine: why
	CancelFile   = "cancel"     // an operator wants it cancelled: why
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

	// Release is what to deploy; its zero value accompanies a Refusal.
	Release Release `json:"release"`
	// Previous is the release the database says serves now; nil if it names
	// none. PreviousStaged tells that its payload lies under RestoreDir, too;
	// otherwise only its env and values do.
	Previous       *Release `json:"previous,omitempty"`
	PreviousStaged bool     `json:"previous_staged,omitempty"`

	// Offline tells that an operator asked for the task on this host, without the
	// database: there is no row to confirm, Token is the time it was asked for, and
	// Release is one that is kept where it is deployed to, so it has no payload.
	Offline bool `json:"offline,omitempty"`

	// Refusal is why the task cannot be carried out, found before anything was
	// staged. Such a directory has no payload; the runner records the failure.
	Refusal string `json:"refusal,omitempty"`
	// Late is how long after DueAt the task was claimed, by the database's clock.
	Late time.Duration `json:"late_ns,omitempty"`
	// TakenOver tells that the claim was taken from another one whose lease had
	// run out, so that the release may be half applied.
	TakenOver bool `json:"taken_over,omitempty"`

	// Starts is how often staging was begun, not counting what a stop of the agent
	// ended: a task that kills its fetcher is not staged for ever.
	Starts int `json:"starts,omitempty"`

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

// maxDocument bounds every JSON document in a task's directory, in bytes. Tests
// set it lower.
var maxDocument = 64 << 20

// indentedFiles is how many files a manifest may list and still be laid out for
// people: beyond, nobody reads it, and blanks are a third of it.
const indentedFiles = 1000

// ErrTooLarge means that a document exceeds what its readers accept.
var ErrTooLarge = errors.New("the document is too large")

func encode(v any, indent bool) ([]byte, error) {
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false)
	if indent {
		enc.SetIndent("", "  ")
	}
	if err := enc.Encode(v); err != nil {
		return nil, err
	}
	if buf.Len() > maxDocument {
		return nil, fmt.Errorf("%w: %d bytes of at most %d", ErrTooLarge, buf.Len(), maxDocument)
	}
	return buf.Bytes(), nil
}

func readJSON(root *os.Root, name string, v any) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	dec := json.NewDecoder(io.LimitReader(f, int64(maxDocument)))
	if err := dec.Decode(v); err != nil {
		return fmt.Errorf("decode %s: %w", name, err)
	}
	return nil
}

// verify compares what lies in root with m: every listed entry is there with
// its type, size, mode, digest and the agent as its owner, and nothing else
// lies below the payload. It returns the first difference.
func verify(root *os.Root, m *Manifest) error {
	listed := make(map[string]bool, len(m.Files))
	for _, f := range m.Files {
		listed[f.Path] = true
		if err := verifyFile(root, f); err != nil {
			return fmt.Errorf("staged %q: %w", f.Path, err)
		}
	}
	for _, top := range secrets {
		err := fs.WalkDir(root.FS(), top, func(name string, _ fs.DirEntry, err error) error {
			switch {
			case errors.Is(err, fs.ErrNotExist) && name == top:
				return fs.SkipDir
			case err != nil:
				return err
			case !listed[name]:
				return fmt.Errorf("staged %q: is not in the manifest", name)
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func verifyFile(root *os.Root, f File) error {
	info, err := root.Lstat(f.Path)
	if err != nil {
		return err
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("belongs to user %d, not to the agent's user %d", st.Uid, os.Geteuid())
	}
	switch f.Type {
	case TypeDir:
		if !info.IsDir() {
			return errors.New("is not a directory any more")
		}
	case TypeSymlink:
		target, err := root.Readlink(f.Path)
		if err != nil {
			return err
		}
		if target != f.Target {
			return fmt.Errorf("points to %q, not to %q", target, f.Target)
		}
		return nil
	case TypeFile:
		if !info.Mode().IsRegular() {
			return errors.New("is not a regular file any more")
		}
		if info.Size() != f.Size {
			return fmt.Errorf("has %d bytes, not %d", info.Size(), f.Size)
		}
		sum, err := digest(root, f.Path)
		if err != nil {
			return err
		}
		if !strings.EqualFold(sum, f.SHA256) {
			return fmt.Errorf("has digest %s, not %s", sum, f.SHA256)
		}
	default:
		return fmt.Errorf("has the unknown type %q", f.Type)
	}
	if got := info.Mode().Perm(); got != f.Mode.Perm() {
		return fmt.Errorf("has mode %04o, not %04o", got, f.Mode.Perm())
	}
	return nil
}

func digest(root *os.Root, name string) (string, error) {
	f, err := root.OpenFile(name, os.O_RDONLY|syscall.O_NOFOLLOW, 0)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		return "", err
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}
