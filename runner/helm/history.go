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
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// abandonedAfter is the least age at which an operation that is not the agent's is
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
		return nil, fmt.Errorf("read the history of release %s: %s", name, deploy.OneLine(err.Error()))
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

// sinceUninstall returns the revisions since the release was last uninstalled with
// its history kept: what came before serves nobody, and must not come back.
func (h history) sinceUninstall() history {
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
	return cmp.Or(h.newest(func(rel *release.Release) bool { return rel.Info.Status == release.StatusDeployed }),
		h.newest(func(*release.Release) bool { return true }))
}

// newest returns the newest successful revision that is wanted, nil for none.
func (h history) newest(wanted func(*release.Release) bool) *release.Release {
	for _, rel := range slices.Backward(h.sinceUninstall()) {
		if succeeded(rel) && wanted(rel) {
			return rel
		}
	}
	return nil
}

// unsettled says which failure was never undone, so that nobody knows what serves;
// "" for none.
func (h history) unsettled() string {
	last := h.last()
	if last == nil || last == h.serving() || last.Info.Status != release.StatusFailed || h.neverServed() {
		return ""
	}
	return fmt.Sprintf("revision %d failed and was not undone", last.Version)
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

// previous returns the revision that a rollback which names none goes back to, nil
// for none; see protocol.RollbackTarget.
func (h history) previous() *release.Release {
	served := slices.DeleteFunc(slices.Clone(h.sinceUninstall()), func(rel *release.Release) bool { return !succeeded(rel) })
	i := protocol.RollbackTarget(served,
		func(rel *release.Release) string {
			// Revisions made by hand hold who knows what: each is its own.
			return cmp.Or(h.originLabel(rel, labelDigest), fmt.Sprintf("revision %d", rel.Version))
		},
		func(rel *release.Release) bool {
			return !isRestore(rel) && (label(rel, labelKind) == string(task.KindRollback) ||
				strings.HasPrefix(rel.Info.Description, "Rollback to "))
		},
		func(*release.Release) bool { return true })
	if i < 0 {
		return nil
	}
	return served[i]
}

// available says which releases can be rolled back to by name.
func (h history) available() string {
	var names []string
	for _, rel := range h.sinceUninstall() {
		name := cmp.Or(h.originLabel(rel, labelVersion), fmt.Sprintf("revision %d", rel.Version))
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

// byAgent reports whether a task of the agent made rel.
func byAgent(rel *release.Release) bool {
	return rel.Labels[labelTask] != "" && rel.Labels[labelRevision] == strconv.Itoa(rel.Version)
}

// label returns one of the agent's labels on rel, "" when the agent did not make rel.
func label(rel *release.Release, name string) string {
	if !byAgent(rel) {
		return ""
	}
	return rel.Labels[name]
}

// byTask reports whether a claim of the job's task made rel, byClaim whether this
// very claim did.
func byTask(rel *release.Release, job protocol.Job) bool {
	return rel != nil && label(rel, labelTask) == labelValue(string(job.TaskID))
}

func byClaim(rel *release.Release, job protocol.Job) bool {
	return byTask(rel, job) && label(rel, labelToken) == labelValue(string(job.Token))
}

// isRestore reports whether rel brought back what served before.
func isRestore(rel *release.Release) bool { return label(rel, labelAction) == actionRestore }

// holds reports whether rel was made from the artifact of want.
func holds(rel *release.Release, want protocol.Release) bool {
	labels := releaseLabels(want)
	if want.ArtifactID != "" && label(rel, labelArtifact) != "" {
		return label(rel, labelArtifact) == labels[labelArtifact] && label(rel, labelDigest) == labels[labelDigest]
	}
	return want.SHA256 != "" && label(rel, labelDigest) == labels[labelDigest]
}

// applied reports whether rel is what the job asks for, deployed by the job's
// task already: by this claim, or by one whose lease ran out just before it
// could report. In the second case the row may have been changed and the task
// put back by hand since, so artifact and values must be the same as well.
func applied(rel *release.Release, job protocol.Job, values map[string]any) bool {
	if rel == nil || rel.Info.Status != release.StatusDeployed || isRestore(rel) {
		return false
	}
	if byClaim(rel, job) {
		return true
	}
	return byTask(rel, job) && (holds(rel, job.Release) || job.Unnamed) &&
		(job.Kind == task.KindRollback || sameValues(rel.Config, values))
}

func sameValues(a, b map[string]any) bool {
	return len(a) == 0 && len(b) == 0 || reflect.DeepEqual(a, b)
}

// lockedByOthers returns why the release's unfinished operation must be left alone,
// nil when there is none or its owner is known to be gone. A task of the agent owns
// the release only as long as its claim is live, and the database lets one claim
// of a target be live: the job's. An operation by hand is over when it has taken
// longer than any of the agent could.
func (h history) lockedByOthers(job protocol.Job, now time.Time) error {
	for _, rel := range h.pending() {
		if byAgent(rel) {
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
	if last := h.last(); last != nil && last.Info.Status == release.StatusUninstalling && !h.neverServed() { // else by the agent
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
	now := h.sinceUninstall()
	if len(now) == len(h) && len(h) > 0 && h[0].Version != 1 {
		return false // the first ones are pruned, and may have served
	}
	for _, rel := range now {
		if !byAgent(rel) || succeeded(rel) {
			return false
		}
	}
	return len(now) > 0
}

// interrupted returns the revision that a dead process of the agent left half
// applied, nil for none: a pending one, or the newest, when the job's task failed
// with it and did not come to undo it.
func (h history) interrupted(job protocol.Job) *release.Release {
	for _, rel := range slices.Backward(h.pending()) {
		if byAgent(rel) {
			return rel
		}
	}
	if last := h.last(); last != nil && byTask(last, job) &&
		(last.Info.Status == release.StatusFailed || last.Info.Status == release.StatusUninstalling) {
		return last
	}
	return nil
}

// madeSince returns the newest revision that the job made after past, nil for none.
func (h history) madeSince(past history, job protocol.Job) *release.Release {
	for _, rel := range slices.Backward(h) {
		if last := past.last(); last != nil && rel.Version <= last.Version {
			break
		}
		if byClaim(rel, job) && !isRestore(rel) {
			return rel
		}
	}
	return nil
}

// markFailed ends the unfinished operations of h in the records, as Flux does:
// Helm then accepts the next one. The removal of what never served is one of them.
func (c *cluster) markFailed(h history, why string) error {
	unfinished := h.pending()
	if last := h.last(); last != nil && last.Info.Status == release.StatusUninstalling && h.neverServed() {
		unfinished = append(unfinished, last)
	}
	for _, rel := range unfinished {
		c.log("revision %d is %s and nobody works on it: marking it failed", rel.Version, rel.Info.Status)
		rel.Info.Status = release.StatusFailed
		rel.Info.Description = fmt.Sprintf("Release %q failed: %s", rel.Name, task.Shorten(why, maxDescription))
		rel.Labels = withLabels(rel, nil)
		if err := c.releases.Update(rel); err != nil {
			return fmt.Errorf("mark revision %d of release %s as failed: %s", rel.Version, rel.Name, deploy.OneLine(err.Error()))
		}
	}
	return nil
}

// maxDescription bounds what we add to a record, in bytes: a record that was
// just small enough must stay so.
const maxDescription = 1 << 10

// origin returns the revision of the agent whose contents rel has: rel itself, or the
// one that a person rolled back to; nil when none is known.
func (h history) origin(rel *release.Release) *release.Release {
	for !byAgent(rel) {
		var version int
		if _, err := fmt.Sscanf(rel.Info.Description, "Rollback to %d", &version); err != nil || version >= rel.Version {
			return nil
		}
		i := slices.IndexFunc(h, func(r *release.Release) bool { return r.Version == version })
		if i < 0 {
			return nil
		}
		rel = h[i]
	}
	return rel
}

// originLabel returns one of the agent's labels on what rel was made from, "" when
// that is not known.
func (h history) originLabel(rel *release.Release, name string) string {
	if o := h.origin(rel); o != nil {
		return label(o, name)
	}
	return ""
}

// changedByHand reports whether a person brought up another revision since the last
// that has the contents of want did so.
func (h history) changedByHand(want protocol.Release) bool {
	known := h.newest(func(rel *release.Release) bool { return holds(rel, want) })
	return h.newest(func(rel *release.Release) bool {
		return !byAgent(rel) && (known == nil || rel.Version > known.Version)
	}) != nil
}

// versionOf returns the release version that rel holds, or the chart's when that is not
// known, as people know it.
func (h history) versionOf(rel *release.Release, job protocol.Job) string {
	if version := h.releaseVersion(rel, job); version != "" || rel.Chart == nil || rel.Chart.Metadata == nil {
		return version
	}
	return "chart " + rel.Chart.Metadata.Name + "-" + rel.Chart.Metadata.Version
}

// releaseVersion returns the release version that rel holds, "" when it is not known.
func (h history) releaseVersion(rel *release.Release, job protocol.Job) string {
	o, previous := h.origin(rel), job.Previous
	switch {
	case o != nil && holds(o, job.Release):
		return job.Release.Version
	case o != nil && previous != nil && holds(o, *previous):
		return previous.Version
	case o != nil:
		return label(o, labelVersion)
	case previous != nil && rel == h.serving() && h.newest(func(r *release.Release) bool { return holds(r, *previous) }) == nil:
		return previous.Version // as the database says, and installed by a person
	}
	return ""
}
