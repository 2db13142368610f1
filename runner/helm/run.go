package helm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// Deployer deploys Helm releases. One process runs one job at a time.
type Deployer struct {
	// Out receives what Helm says to people; secrets are masked.
	Out io.Writer
	// Emit receives the timeline, from one goroutine at a time. Its texts are
	// masked.
	Emit func(task.Event)
	// Gate asks for leave to change what serves. An error means no, and says why.
	Gate func(context.Context) error
}

var (
	errTimeout        = errors.New("the time is up")
	errRestoreTimeout = errors.New("the time to restore is up")
)

// run is one job on its way.
type run struct {
	job     deployment.Job
	out     *mask.Writer
	tell    func(task.Event)
	gate    func(context.Context) error
	cluster *cluster

	values    map[string]any // of the row
	valuesErr error

	left    *release.Release // what an earlier deployment of ours left half-way
	cleared bool             // something of it was cleared away
	asked   bool
	denied  error // what the gate answered

	mu      sync.Mutex
	secrets []map[string]string
	masker  *mask.Masker
}

// Run carries out job and returns what came of it. The end of ctx interrupts:
// what served before is restored, within the job's limit; the cause of ctx's
// end becomes part of the Result.
func (d *Deployer) Run(ctx context.Context, job deployment.Job) deployment.Result {
	r := &run{job: job, gate: d.Gate, tell: d.Emit, out: new(mask.Masker).Writer(d.Out)}
	defer r.out.Flush() // a log that cannot be written stops nothing
	r.values, r.valuesErr = readValues(job.Release.ValuesFile)
	r.learn(secretsOfValues(r.values))

	res := r.do(ctx)
	res.Message, res.Error = r.masked(res.Message), r.masked(res.Error)
	for i, l := range res.LogTail {
		res.LogTail[i] = r.masked(l)
	}
	return res
}

// learn adds secrets to what is masked from now on.
func (r *run) learn(secrets ...map[string]string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.secrets = append(r.secrets, secrets...)
	r.masker = mask.New(r.secrets...)
	r.out.SetMasker(r.masker)
}

func (r *run) masked(s string) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.masker.String(s)
}

func (r *run) emit(p task.Phase, text string) {
	r.tell(task.Event{Time: time.Now().UTC(), Component: "deploy", Phase: p, Text: r.masked(text)})
}

// note writes a line of our own among what Helm says.
func note(out io.Writer, format string, args ...any) {
	_, _ = fmt.Fprintf(out, "wrktalk-deploy: "+format+"\n", args...) // a log that cannot be written stops nothing
}

func (r *run) do(ctx context.Context) deployment.Result {
	if err := check(r.job); err != nil {
		return r.refused(err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.job.Timeout, errTimeout)
	defer cancel()
	r.emit(task.PhasePreflight, "checking "+r.what())
	var err error
	if r.cluster, err = connect(r.job.Helm, requestTimeout, r.out); err != nil {
		return r.refused(err)
	}
	if r.job.Action == deployment.ActionRecover {
		return r.recover(ctx)
	}
	if r.valuesErr != nil {
		return r.refused(r.valuesErr)
	}
	return r.deploy(ctx)
}

// check refuses a job that this program cannot carry out.
func check(job deployment.Job) error {
	h := job.Helm
	switch {
	case h == nil:
		return errors.New("the job names no Helm release")
	case chartutil.ValidateReleaseName(h.Release) != nil:
		return fmt.Errorf("helm.release_name %q: it may hold lower-case letters, digits and -, at most 53 of them", h.Release)
	case h.Namespace == "":
		return errors.New("kube.namespace is not set")
	case job.Timeout <= 0 || job.RestoreTimeout <= 0:
		return errors.New("the job's timeouts must be positive")
	case job.Action != deployment.ActionDeploy && job.Action != deployment.ActionRecover:
		return fmt.Errorf("the job asks for the unknown action %q", job.Action)
	}
	return nil
}

// observe reads the history, and learns what of it must not show.
func (r *run) observe() (history, error) {
	h, err := r.cluster.readHistory(r.job.Helm.Release)
	for _, rel := range h[max(0, len(h)-3):] {
		r.learn(secretsOfRelease(rel)...)
	}
	if s := h.serving(); s != nil {
		r.learn(secretsOfRelease(s)...)
	}
	return h, err
}

func (r *run) deploy(ctx context.Context) deployment.Result {
	past, err := r.begun(ctx)
	if err != nil {
		return r.refused(err)
	}
	if applied(past.last(), r.job, r.values) {
		return r.confirm(ctx, past)
	}
	if err := past.stuck(r.job, time.Now()); err != nil {
		return r.refused(err)
	}
	o := order{Op: opUpgrade, Action: actionDeploy, Ask: true}
	if r.job.Kind == task.KindRollback {
		target, err := rollbackTarget(past, r.job)
		if err != nil {
			return r.refused(err)
		}
		if target != nil {
			r.identify(target)
			o.Op, o.Revision = opRollback, target.Version
		}
	}
	if o.Op == opUpgrade && r.job.Release.PayloadDir == "" {
		return r.refused(fmt.Errorf("the artifact of release %s is not staged and no revision of it is kept", r.job.Release.Version))
	}
	r.left = past.leftHalfway(r.job)
	end := r.child(ctx, o, func(ctx context.Context) (leave, error) {
		given, err := r.begin(ctx, past)
		if given.Install {
			past = nil // gone, and its revisions begin anew
		}
		return given, err
	})
	end.touched = end.touched || r.cleared
	switch {
	case end.err == nil:
		return r.succeeded(end.created)
	case !end.touched && r.left == nil:
		return r.refused(end.err)
	case !end.touched:
		return r.refusedHalfway(ctx, end)
	default:
		return r.afterFailure(ctx, past, end)
	}
}

// begun reads the history. An API that is away is a reason to refuse, but not
// when an earlier attempt may have left the release half-way: the host, and with
// it the API, may be starting.
func (r *run) begun(ctx context.Context) (history, error) {
	for said := ""; ; {
		var past history
		err := r.cluster.reachable(ctx)
		if err == nil {
			past, err = r.observe()
		}
		if err == nil {
			return past, nil
		}
		if !r.job.Again {
			return nil, cmp.Or(context.Cause(ctx), err)
		}
		text := oneLine(err.Error())
		if cause := context.Cause(ctx); cause != nil {
			return nil, fmt.Errorf("%w: %s", cause, text)
		}
		if text != said {
			said = text
			note(r.out, "%s; trying again", text)
			r.emit(task.PhasePreflight, text+"; waiting for it")
		}
		select {
		case <-ctx.Done():
		case <-time.After(retryDelay):
		}
	}
}

// ask asks the runner for leave, once.
func (r *run) ask(ctx context.Context) error {
	if !r.asked {
		r.asked, r.denied = true, r.gate(ctx)
	}
	return r.denied
}

// refusedHalfway follows a deployment that was refused although an earlier one
// died half-way: what served before that must come back all the same.
func (r *run) refusedHalfway(ctx context.Context, end ending) deployment.Result {
	res := r.refused(end.err)
	ctx, cancel := r.restoreContext(ctx)
	defer cancel()
	if r.ask(ctx) != nil {
		res.Touched, res.Serving = true, ""
		res.Message = fmt.Sprintf("%s was not deployed; revision %d, which died half-way, stays as it is", r.what(), r.left.Version)
		return res
	}
	res.Touched = true
	what := fmt.Sprintf("release %s was not deployed; revision %d had died half-way", r.job.Release.Version, r.left.Version)
	now, err := r.patiently(ctx)
	if err != nil {
		return r.unknown(res, what, err)
	}
	return r.restore(ctx, res, now, r.left, what)
}

// identify completes a job that does not say which artifact it is about.
func (r *run) identify(rel *release.Release) {
	if want := &r.job.Release; want.ArtifactID == "" {
		want.Version = cmp.Or(want.Version, versionOf(rel, r.job))
		want.ArtifactID, want.SHA256 = label(rel, LabelArtifact), label(rel, LabelDigest)
	}
}

// what names the job's release to people.
func (r *run) what() string {
	if v := r.job.Release.Version; v != "" {
		return "release " + v
	}
	return "the previous release"
}

// rollbackTarget returns the revision that a rollback task means: the newest
// successful one of the artifact it names, or of the version when it names only
// that; the one before when it names none; nil when the artifact must be deployed
// anew.
func rollbackTarget(past history, job deployment.Job) (*release.Release, error) {
	if job.Release.ArtifactID != "" || job.Release.PayloadDir != "" {
		return past.newest(func(rel *release.Release) bool { return holds(rel, job.Release) }), nil
	}
	if want := job.Release.Version; want != "" {
		target := past.newest(func(rel *release.Release) bool { return label(rel, LabelVersion) == labelValue(want) })
		if target == nil {
			return nil, fmt.Errorf("no successful revision of release %s is kept: %s", want, past.kept())
		}
		return target, nil
	}
	if target := past.before(); target != nil {
		return target, nil
	}
	return nil, fmt.Errorf("there is no release to roll back to that was not rolled back from: %s", past.kept())
}

// begin is called when all checks have passed. It asks for leave and clears away
// what a dead process left.
func (r *run) begin(ctx context.Context, past history) (leave, error) {
	if err := r.ask(ctx); err != nil {
		return leave{}, err
	}
	if err := context.Cause(ctx); err != nil {
		return leave{}, err
	}
	if stuck := past.pending(); len(stuck) > 0 {
		r.emit(task.PhasePreflight, fmt.Sprintf("revision %d was left %s by a process that is gone: unlocking it", stuck[0].Version, stuck[0].Info.Status))
	}
	if past.neverServed() {
		// Upgrading it would skip the hooks of an installation.
		return leave{Install: true}, r.uninstall(ctx)
	}
	last := past.last()
	if last == nil || last.Info.Status == release.StatusUninstalled {
		return leave{Install: true}, nil
	}
	dirty := last.Info.Status.IsPending() || ours(last) && !succeeded(last)
	if err := r.cluster.markFailed(past, "its process is gone"); err != nil {
		return leave{}, err
	}
	if dirty {
		end := r.child(ctx, order{Op: opCleanse}, nil)
		r.cleared = end.touched
		return leave{}, end.err
	}
	return leave{}, nil
}

// uninstall removes a release that never served.
func (r *run) uninstall(ctx context.Context) error {
	end := r.child(ctx, order{Op: opUninstall}, nil)
	r.cleared = r.cleared || end.touched
	if end.err != nil {
		return fmt.Errorf("remove the failed first installation: %w", end.err)
	}
	return nil
}

// confirm follows a process that could not tell any more that it was done.
func (r *run) confirm(ctx context.Context, past history) deployment.Result {
	rel := past.last()
	r.identify(rel)
	r.emit(task.PhaseWaiting, fmt.Sprintf("release %s is deployed as revision %d already; looking whether it is up", r.job.Release.Version, rel.Version))
	var end ending
	for range restoreTries { // a blip of the API is no reason to undo what is up
		if end = r.child(ctx, order{Op: opWait}, nil); end.err == nil {
			return r.succeeded(rel.Version)
		}
		if end.late || ctx.Err() != nil {
			break
		}
		select {
		case <-time.After(retryDelay):
		case <-ctx.Done():
		}
	}
	end.created, end.touched = rel.Version, true
	if err := r.ask(context.WithoutCancel(ctx)); err != nil {
		return deployment.Result{
			Touched: true, Serving: r.job.Release.Version, HelmRevision: rel.Version,
			Message: fmt.Sprintf("release %s is deployed as revision %d, but it is not up, and it was left as it is", r.job.Release.Version, rel.Version),
			Error:   r.sentence(end, nil) + "; " + oneLine(err.Error()),
		}
	}
	return r.afterFailure(ctx, past, end)
}

// refused is the Result of a job that changed nothing.
func (r *run) refused(err error) deployment.Result {
	text := oneLine(err.Error())
	if errors.Is(err, errTimeout) {
		_, why, _ := strings.Cut(text, errTimeout.Error())
		text = fmt.Sprintf("the preparations were not done after %s%s", r.job.Timeout, why)
	}
	res := deployment.Result{
		Message: r.what() + " was not deployed, and nothing was changed",
		Error:   text,
	}
	if r.job.Previous != nil && r.job.Action == deployment.ActionDeploy {
		res.Serving = r.job.Previous.Version
	}
	return res
}

// succeeded is the Result of a release that is up.
func (r *run) succeeded(revision int) deployment.Result {
	return deployment.Result{
		Succeeded: true, Touched: true, ArtifactID: r.job.Release.ArtifactID,
		Message:      fmt.Sprintf("release %s is up as revision %d", r.job.Release.Version, revision),
		Serving:      r.job.Release.Version,
		HelmRevision: revision,
	}
}

// mine returns the newest revision that this job made after past, nil for none.
func mine(now, past history, job deployment.Job) *release.Release {
	for _, rel := range slices.Backward(now) {
		if last := past.last(); last != nil && rel.Version <= last.Version {
			break
		}
		if ofTask(rel, job) && !isRestore(rel) {
			return rel
		}
	}
	return nil
}
