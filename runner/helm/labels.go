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

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// The agent's own labels on each revision it makes.
const (
	labelTask     = "agent.wrktalk.com/task"
	labelToken    = "agent.wrktalk.com/token"
	labelArtifact = "agent.wrktalk.com/artifact"
	labelDigest   = "agent.wrktalk.com/digest"
	labelVersion  = "agent.wrktalk.com/version"
	labelKind     = "agent.wrktalk.com/kind" // of the task: deploy or rollback
	// labelAction says whether the task wanted this revision (deploy) or got it
	// back after a failure (restore).
	labelAction = "agent.wrktalk.com/action"
	// labelRevision is the revision that the labels were made for. Helm copies
	// labels into the next revision, whoever makes it: one that says another
	// number is not the agent's.
	labelRevision = "agent.wrktalk.com/revision"
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
func releaseLabels(rel protocol.Release) map[string]string {
	return map[string]string{
		labelArtifact: labelValue(rel.ArtifactID),
		labelDigest:   labelValue(rel.SHA256[:min(len(rel.SHA256), digestDigits)]),
		labelVersion:  labelValue(rel.Version),
	}
}

// taskLabels are the labels of every revision that the job makes.
func taskLabels(job protocol.Job, action string) map[string]string {
	return map[string]string{
		labelTask:   labelValue(string(job.TaskID)),
		labelToken:  labelValue(string(job.Token)),
		labelKind:   labelValue(string(job.Kind)),
		labelAction: action,
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

// labelingDriver is the storage of releases that puts labels on each new revision.
// Helm's rollback has no option for it: it would copy those of the revision it
// goes back to, and with them the name of the task that made that one.
type labelingDriver struct {
	driver.Driver
	labels       map[string]string
	beforeCreate func() error // a revision is about to be recorded
	created      func(revision int)
}

func (s *labelingDriver) Create(key string, rel *release.Release) error {
	if err := s.beforeCreate(); err != nil {
		return err
	}
	rel.Labels = withLabels(rel, s.labels)
	if rel.Labels[labelTask] != "" {
		rel.Labels[labelRevision] = strconv.Itoa(rel.Version)
	}
	if err := s.Driver.Create(key, rel); err != nil {
		return err
	}
	s.created(rel.Version)
	return nil
}
