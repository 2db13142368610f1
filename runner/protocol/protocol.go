// Package protocol is what the runner and wrktalk-deploy say to each other.
//
// The runner starts one wrktalk-deploy per deployment, in a process group of its
// own and with a scrubbed environment, and writes one Job as JSON to its
// standard input. Standard input then stays open: when it reaches its end, the
// runner is gone and wrktalk-deploy stops at once. Progress comes back as JSON
// lines, one Message each, on file descriptor 3; the last one carries the
// Result. Standard output and error are what Helm or Compose say to people: the
// runner keeps them in the task's deploy.log. SIGTERM asks wrktalk-deploy to
// give up: it stops what it does, restores what served before within the job's
// limits, and still reports a Result. Its exit code is 0 whenever a Result was
// reported, whatever the Result says.
package protocol

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Schema is the version of Job and Message. Both programs refuse any other: they
// ship together. A runner that was started before an upgrade starts the new
// wrktalk-deploy, so the JSON names stay as the first version had them.
const Schema = 1

// MessageFD is the file descriptor on which wrktalk-deploy writes Messages.
const MessageFD = 3

// CheckReleaseArg is the argument with which wrktalk-deploy checks the release of the
// Job on its standard input instead of deploying it: it exits with 0, or with 1 and a
// sentence on standard error.
const CheckReleaseArg = "check-release"

// Action says what wrktalk-deploy is to do.
type Action string

const (
	// ActionDeploy makes Job.Release the one that serves; when it does not come
	// up, what served before is restored.
	ActionDeploy Action = "deploy"
	// ActionRecover follows a wrktalk-deploy that died in the middle: it
	// observes, and makes Job.Previous serve again unless Job.Release is already
	// up and healthy.
	ActionRecover Action = "recover"
)

// Release is a release on disk, or one that is expected to be kept already.
type Release struct {
	ArtifactID string `json:"artifact_id"`
	Version    string `json:"version"`
	SHA256     string `json:"sha256"` // of the artifact, lower-case hex
	// PayloadDir is the absolute path of the extracted artifact, "" when the
	// release must be among those kept by an earlier run.
	PayloadDir string `json:"payload_dir,omitempty"`
	// EnvFile and ValuesFile are absolute paths of the row's texts, "" when the
	// row has none. They are secrets: read, never copied.
	EnvFile    string `json:"env_file,omitempty"`
	ValuesFile string `json:"values_file,omitempty"`
}

// Bundle returns the name of the directory that keeps the release.
func (r Release) Bundle() string { return BundleName(r.Version, r.SHA256) }

// Job is one deployment.
type Job struct {
	Schema int        `json:"schema"`
	Action Action     `json:"action"`
	TaskID task.ID    `json:"task_id"`
	Kind   task.Kind  `json:"kind"`
	Token  task.Token `json:"token"`

	Release Release `json:"release"`
	// Unnamed tells that the row of a rollback names no release: Release is the one that
	// served before by the flags in the database, and incomplete when these name none.
	Unnamed bool `json:"unnamed,omitempty"`
	// Previous is the release that the database says serves now; nil when it
	// names none. It may be the same artifact as Release.
	Previous *Release `json:"previous,omitempty"`

	// Interrupted tells that an earlier attempt may have left the release half
	// applied, so that a server which does not answer yet is waited for.
	Interrupted bool `json:"again,omitempty"`

	Timeout        time.Duration `json:"timeout"`         // of bringing Release up, pull included
	RestoreTimeout time.Duration `json:"restore_timeout"` // of bringing Previous back

	Settings
}

// Settings says where and how to deploy: either Compose or Helm is set.
type Settings struct {
	Compose *Compose `json:"compose,omitempty"`
	Helm    *Helm    `json:"helm,omitempty"`
	// Policy is what the release may ask for.
	Policy policy.Rules `json:"policy"`
}

// Compose is where and how Compose releases are deployed.
type Compose struct {
	Project    string        `json:"project"`     // the Compose project's name
	WorkingDir string        `json:"working_dir"` // absolute; bundles are kept below it
	Keep       int           `json:"keep"`        // how many bundles to keep besides those in use
	StableFor  time.Duration `json:"settle"`      // how long a container without health check must run
}

// BundlesDir is where, below Compose.WorkingDir, the bundles are kept, each in a
// directory named by BundleName. No container mounts any of it.
const BundlesDir = "bundles"

// FormerDir is where the first version kept them, and had them mounted from. What
// lies there goes over to the other directories at the next deployment.
const FormerDir = "releases"

// Keeps reports whether the working directory dir keeps the bundle name. Former
// counts bundles in FormerDir, too, which containers may have changed.
func Keeps(dir, name string, former bool) bool {
	places := []string{BundlesDir}
	if former {
		places = append(places, FormerDir)
	}
	for _, place := range places {
		// In FormerDir, a link stands for what went over.
		if info, err := os.Lstat(filepath.Join(dir, place, name)); err == nil && info.IsDir() {
			return true
		}
	}
	return false
}

var unfit = regexp.MustCompile(`[^A-Za-z0-9._-]+`)

// BundleName returns the name of the directory that keeps a release's bundle,
// which whoever stages a release and whoever deploys it must agree on: the
// version and the first twelve digits of the artifact's digest, fit for a file
// system and a label whatever the database holds.
func BundleName(version, sha256 string) string {
	const most = 60
	version = strings.TrimLeft(unfit.ReplaceAllString(version, "-"), ".-")
	version = version[:min(len(version), most)]
	if version == "" {
		version = "unnamed"
	}
	sum := strings.ToLower(unfit.ReplaceAllString(sha256, ""))
	sum = strings.TrimLeft(sum[:min(len(sum), 12)], ".-")
	if sum == "" {
		sum = "nodigest"
	}
	return version + "-" + sum
}

// Helm is where and how Helm releases are deployed.
type Helm struct {
	Namespace  string `json:"namespace"`
	Release    string `json:"release"`
	Kubeconfig string `json:"kubeconfig,omitempty"` // "" is in-cluster or the default file
	Context    string `json:"context,omitempty"`
	HistoryMax int    `json:"history_max"`

	// The pod that the agent runs in, "" for none.
	OwnPod       string `json:"own_pod,omitempty"`
	OwnNamespace string `json:"own_namespace,omitempty"`
}

// Message is one line on MessageFD. Exactly one of its fields is set.
type Message struct {
	Event *task.Event `json:"event,omitempty"`
	// ApprovalRequest asks the runner whether what serves may be changed: everything
	// that can be checked or fetched beforehand has been. wrktalk-deploy waits for an
	// Approval on its standard input. It asks once per Job.
	ApprovalRequest bool    `json:"gate,omitempty"`
	Result          *Result `json:"result,omitempty"`
}

// Approval answers an ApprovalRequest: the second JSON value on standard input.
// The maintenance page is up by then.
type Approval struct {
	Approved bool   `json:"proceed"`
	Reason   string `json:"reason,omitempty"` // why not
}

// Result is what came of a Job. Its texts carry no secrets.
type Result struct {
	Succeeded bool   `json:"succeeded"`
	Message   string `json:"message"`
	Error     string `json:"error,omitempty"`

	// ArtifactID is what a release that the job did not name by its artifact was
	// made from, "" when its records do not tell.
	ArtifactID string `json:"artifact_id,omitempty"`

	HelmRevision int `json:"helm_revision,omitempty"`
	// Serving is the version that serves after the job, "" for none or unknown.
	Serving string `json:"serving,omitempty"`
	// ServingUnknown is true when nothing was changed, but what the database says of
	// what serves is not to be believed.
	ServingUnknown bool `json:"serving_unknown,omitempty"`
	// Restored is true when Previous was brought back.
	Restored bool `json:"restored,omitempty"`
	// Changed is false when nothing was changed: the job was refused before it
	// began to act.
	Changed bool `json:"touched"`
	// LogTail holds the last lines that explain a failure, oldest first.
	LogTail []string `json:"log_tail,omitempty"`
}
