package helm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"helm.sh/helm/v3/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// abandonedAfter is the least age at which an operation that is none of ours is
// taken to be over. Helm's records name no owner and have no heartbeat, so that
// age is the only sign there is.
const abandonedAfter = time.Hour

// history are the revisions of the release, oldest first.
type history []*release.Release

// readHistory returns the revisions; none is no error.
func (c *cluster) readHistory(name string) (history, error) {
	list, err := c.releases.History(name)
	switch {
	case errors.Is(err, driver.ErrReleaseNotFound):
		return nil, nil
	case apierrors.IsForbidden(err):
		return nil, fmt.Errorf("%s may not list secrets in namespace %q, where Helm keeps its releases: grant get, list, create, update and delete on secrets",
			c.whoami(context.Background()), c.namespace)
	case err != nil:
		return nil, fmt.Errorf("read the history of release %s: %s", name, oneLine(err.Error()))
	}
	releaseutil.SortByRevision(list)
	return list, nil
}

// last returns the newest revision, nil for none.
func (h history) last() *release.Release {
	if len(h) == 0 {
		return nil
	}
	return h[len(h)-1]
}

// alive returns the revisions since the release was last uninstalled with its
// history kept: what came before serves nobody, and must not come back.
func (h history) alive() history {
	for i, rel := range slices.Backward(h) {
		// An installation over it makes Helm forget the status, but for the reason.
		if rel.Info.Status == release.StatusUninstalled || rel.Info.Description == "superseded by new release" {
			return h[i+1:]
		}
	}
	return h
}

// serving returns the revision that serves, or served until something newer got
// stuck; nil when none ever came up.
func (h history) serving() *release.Release {
	for _, rel := range slices.Backward(h.alive()) {
		if rel.Info.Status == release.StatusDeployed {
			return rel
		}
	}
	return h.newest(func(*release.Release) bool { return true })
}

// newest returns the newest successful revision that is wanted, nil for none.
func (h history) newest(wanted func(*release.Release) bool) *release.Release {
	for _, rel := range slices.Backward(h.alive()) {
		if succeeded(rel) && wanted(rel) {
			return rel
		}
	}
	return nil
}

// succeeded reports whether rel came up at its time. Superseded alone does not
// say so: a rollback that fails marks the failed revision before it superseded,
// and only its description still tells.
func succeeded(rel *release.Release) bool {
	switch rel.Info.Status {
	case release.StatusDeployed:
		return true
	case release.StatusSuperseded:
		return !strings.Contains(rel.Info.Description, " failed: ")
	}
	return false
}

// before returns the revision that a rollback which names none goes back to, nil
// for none; see deployment.RollbackTarget.
func (h history) before() *release.Release {
	served := slices.DeleteFunc(slices.Clone(h.alive()), func(rel *release.Release) bool { return !succeeded(rel) })
	i := deployment.RollbackTarget(served,
		func(rel *release.Release) string {
			// Revisions made by hand hold who knows what: each is its own.
			return cmp.Or(label(rel, LabelDigest), fmt.Sprintf("revision %d", rel.Version))
		},
		func(rel *release.Release) bool {
			return !isRestore(rel) && (label(rel, LabelKind) == string(task.KindRollback) ||
				strings.HasPrefix(rel.Info.Description, "Rollback to "))
		},
		func(*release.Release) bool { return true })
	if i < 0 {
		return nil
	}
	return served[i]
}

// kept says which releases can be rolled back to by name.
func (h history) kept() string {
	var names []string
	for _, rel := range h.alive() {
		name := cmp.Or(label(rel, LabelVersion), fmt.Sprintf("revision %d", rel.Version))
		if succeeded(rel) && !slices.Contains(names, name) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return "none ever came up"
	}
	return "kept are " + strings.Join(names, ", ")
}

// pending returns the revisions that an unfinished operation left.
func (h history) pending() []*release.Release {
	var found []*release.Release
	for _, rel := range h {
		if rel.Info.Status.IsPending() {
			found = append(found, rel)
		}
	}
	return found
}

// ours reports whether a task of the agent made rel.
func ours(rel *release.Release) bool {
	return rel.Labels[LabelTask] != "" && rel.Labels[LabelRevision] == strconv.Itoa(rel.Version)
}

// label returns one of our labels on rel, "" when rel is not ours.
func label(rel *release.Release, name string) string {
	if !ours(rel) {
		return ""
	}
	return rel.Labels[name]
}

// sameTask reports whether a claim of the job's task made rel, ofTask whether
// this very claim did.
func sameTask(rel *release.Release, job deployment.Job) bool {
	return rel != nil && label(rel, LabelTask) == labelValue(string(job.TaskID))
}

func ofTask(rel *release.Release, job deployment.Job) bool {
	return sameTask(rel, job) && label(rel, LabelToken) == labelValue(string(job.Token))
}

// isRestore reports whether rel brought back what served before.
func isRestore(rel *release.Release) bool { return label(rel, LabelAction) == actionRestore }

// holds reports whether rel was made from the artifact of want.
func holds(rel *release.Release, want deployment.Release) bool {
	labels := releaseLabels(want)
	if want.ArtifactID != "" && label(rel, LabelArtifact) != "" {
		return label(rel, LabelArtifact) == labels[LabelArtifact] && label(rel, LabelDigest) == labels[LabelDigest]
	}
	return want.SHA256 != "" && label(rel, LabelDigest) == labels[LabelDigest]
}

// applied reports whether rel is what the job asks for, deployed by the job's
// task already: by this claim, or by one whose lease ran out just before it
// could report. In the second case the row may have been changed and the task
// put back by hand since, so artifact and values must be the same as well.
func applied(rel *release.Release, job deployment.Job, values map[string]any) bool {
	if rel == nil || rel.Info.Status != release.StatusDeployed || isRestore(rel) {
		return false
	}
	if ofTask(rel, job) {
		return true
	}
	return sameTask(rel, job) && holds(rel, job.Release) &&
		(job.Kind == task.KindRollback || sameValues(rel.Config, values))
}

func sameValues(a, b map[string]any) bool {
	return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b)
}

// stuck returns why the release's unfinished operation must be left alone, nil
// when there is none or its owner is known to be gone. A task of the agent owns
// the release only as long as its claim is live, and the database lets one claim
// of a target be live: ours. An operation by hand is over when it has taken
// longer than any of ours could.
func (h history) stuck(job deployment.Job, now time.Time) error {
	for _, rel := range h.pending() {
		if ours(rel) {
			continue
		}
		limit := max(abandonedAfter, job.Timeout+job.RestoreTimeout)
		since := rel.Info.LastDeployed
		if age := now.Sub(since.Time); age < limit {
			way := fmt.Sprintf("`helm uninstall %s -n %s`", rel.Name, rel.Namespace)
			if back := h.serving(); back != nil {
				way = fmt.Sprintf("`helm rollback %s %d -n %s`", rel.Name, back.Version, rel.Namespace)
			}
			return fmt.Errorf("revision %d of release %s is %s since %s, begun by somebody else: wait until it is done; if nothing works on it any more, run %s",
				rel.Version, rel.Name, rel.Info.Status, since.UTC().Format(time.DateTime+" UTC"), way)
		}
	}
	switch last := h.last(); {
	case last == nil:
	case last.Info.Status == release.StatusUninstalling && !h.neverServed(): // else by us
		return fmt.Errorf("release %s is being uninstalled: finish that with `helm uninstall %s -n %s`", last.Name, last.Name, last.Namespace)
	}
	return nil
}

// installs reports whether the next deployment is an installation.
func (h history) installs() bool {
	last := h.last()
	return last == nil || last.Info.Status == release.StatusUninstalled || h.neverServed()
}

// neverServed reports whether all revisions are tries of the agent to install
// the release, none of which came up: what they left serves nobody.
func (h history) neverServed() bool {
	now := h.alive()
	if len(now) == len(h) && len(h) > 0 && h[0].Version != 1 {
		return false // the first ones are pruned, and may have served
	}
	for _, rel := range now {
		if !ours(rel) || succeeded(rel) {
			return false
		}
	}
	return len(now) > 0
}

// leftHalfway returns the revision that a dead process of ours left half-way, nil
// for none: a pending one, or the newest, when the job's task failed with it and
// did not come to undo it.
func (h history) leftHalfway(job deployment.Job) *release.Release {
	for _, rel := range slices.Backward(h.pending()) {
		if ours(rel) {
			return rel
		}
	}
	if last := h.last(); last != nil && sameTask(last, job) &&
		(last.Info.Status == release.StatusFailed || last.Info.Status == release.StatusUninstalling) {
		return last
	}
	return nil
}

// markFailed ends the unfinished operations of h in the records, as Flux does:
// Helm then accepts the next one.
func (c *cluster) markFailed(h history, why string) error {
	for _, rel := range h.pending() {
		c.log("revision %d is %s and nobody works on it: marking it failed", rel.Version, rel.Info.Status)
		rel.Info.Status = release.StatusFailed
		rel.Info.Description = fmt.Sprintf("Release %q failed: %s", rel.Name, task.SafeText(why, maxDescription))
		rel.Labels = withLabels(rel, nil)
		if err := c.releases.Update(rel); err != nil {
			return fmt.Errorf("mark revision %d of release %s as failed: %s", rel.Version, rel.Name, oneLine(err.Error()))
		}
	}
	return nil
}

// maxDescription bounds what we add to a record, in bytes: a record that was
// just small enough must stay so.
const maxDescription = 1 << 10

// versionOf returns the release version that rel holds, as people know it.
func versionOf(rel *release.Release, job deployment.Job) string {
	if rel == nil {
		return ""
	}
	if holds(rel, job.Release) {
		return job.Release.Version
	}
	if job.Previous != nil && (holds(rel, *job.Previous) || !ours(rel)) {
		return job.Previous.Version
	}
	if v := label(rel, LabelVersion); v != "" {
		return v
	}
	if rel.Chart != nil && rel.Chart.Metadata != nil {
		return "chart " + rel.Chart.Metadata.Name + "-" + rel.Chart.Metadata.Version
	}
	return ""
}
