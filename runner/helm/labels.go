package helm

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
	"strconv"
	"strings"

	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// The agent's own labels on each revision it makes.
const (
	LabelTask     = "agent.wrktalk.com/task"
	LabelToken    = "agent.wrktalk.com/token"
	LabelArtifact = "agent.wrktalk.com/artifact"
	LabelDigest   = "agent.wrktalk.com/digest"
	LabelVersion  = "agent.wrktalk.com/version"
	LabelKind     = "agent.wrktalk.com/kind" // of the task: deploy or rollback
	// LabelAction says whether the task wanted this revision (deploy) or got it
	// back after a failure (restore).
	LabelAction = "agent.wrktalk.com/action"
	// LabelRevision is the revision that the labels were made for. Helm copies
	// labels into the next revision, whoever makes it: one that says another
	// number is not the agent's.
	LabelRevision = "agent.wrktalk.com/revision"
)

const (
	actionDeploy  = "deploy"
	actionRestore = "restore"
)

// digestDigits is how much of an artifact's digest fits a label.
const digestDigits = 63

// labelValue returns s as the value of a label: as it is where Kubernetes takes
// it, otherwise as much of it as may stand there and a digest, so that two
// different texts never become the same value.
func labelValue(s string) string {
	const mark = "-x"
	if len(validation.IsValidLabelValue(s)) == 0 && !looksEncoded(s, mark) {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	plain := strings.Map(func(r rune) rune {
		if r < 128 && (r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r)) {
			return r
		}
		return '_'
	}, s)
	plain = strings.TrimLeft(plain, "._-")
	return strings.TrimLeft(plain[:min(len(plain), 40)]+mark+hex.EncodeToString(sum[:8]), "-")
}

// looksEncoded reports whether s ends as an encoded value does.
func looksEncoded(s, mark string) bool {
	_, digits, found := strings.Cut(s, mark[1:])
	_, err := hex.DecodeString(digits)
	return found && len(digits) == 16 && err == nil
}

// releaseLabels are the labels of a revision that holds rel.
func releaseLabels(rel deployment.Release) map[string]string {
	return map[string]string{
		LabelArtifact: labelValue(rel.ArtifactID),
		LabelDigest:   labelValue(rel.SHA256[:min(len(rel.SHA256), digestDigits)]),
		LabelVersion:  labelValue(rel.Version),
	}
}

// taskLabels are the labels of every revision that the job makes.
func taskLabels(job deployment.Job, action string) map[string]string {
	return map[string]string{
		LabelTask:   labelValue(string(job.TaskID)),
		LabelToken:  labelValue(string(job.Token)),
		LabelKind:   labelValue(string(job.Kind)),
		LabelAction: action,
	}
}

// withLabels returns rel's own labels, without those that the storage sets
// itself, and more on top of them.
func withLabels(rel *release.Release, more map[string]string) map[string]string {
	labels := make(map[string]string, len(rel.Labels)+len(more))
	for k, v := range rel.Labels {
		if !slices.Contains(driver.GetSystemLabels(), k) {
			labels[k] = v
		}
	}
	maps.Copy(labels, more)
	return labels
}

// stamping is the storage of releases that puts labels on each new revision.
// Helm's rollback has no option for it: it would copy those of the revision it
// goes back to, and with them the name of the task that made that one.
type stamping struct {
	driver.Driver
	labels  map[string]string
	before  func() error // a revision is about to be recorded
	created func(revision int)
}

func (s *stamping) Create(key string, rel *release.Release) error {
	if err := s.before(); err != nil {
		return err
	}
	rel.Labels = withLabels(rel, s.labels)
	if rel.Labels[LabelTask] != "" {
		rel.Labels[LabelRevision] = strconv.Itoa(rel.Version)
	}
	if err := s.Driver.Create(key, rel); err != nil {
		return err
	}
	s.created(rel.Version)
	return nil
}
