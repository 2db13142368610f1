package compose

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/docker/docker/api/types/container"
	"github.com/sirupsen/logrus"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/runner/deployment"
)

// Deployer deploys Compose releases. One process runs one job at a time: the
// Compose library keeps state in package variables.
type Deployer struct {
	// Out receives what Compose says to people; secrets are masked.
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
	job    deployment.Job
	masker *mask.Masker
	out    io.Writer // masked
	emit   func(task.Phase, string)
	gate   func(context.Context) error
	engine *engine
	store  *store

	tagged map[string]string // image references of what ran before, and the ids they stood for

	env, previousEnv       rowEnv
	envErr, previousEnvErr error
}

// Run carries out job and returns what came of it. The end of ctx interrupts:
// what served before is restored, within the job's limit; the cause of ctx's
// end becomes part of the Result.
func (d *Deployer) Run(ctx context.Context, job deployment.Job) deployment.Result {
	r := &run{job: job, gate: d.Gate}
	r.env, r.envErr = readEnv(job.Release.EnvFile)
	if job.Previous != nil {
		r.previousEnv, r.previousEnvErr = readEnv(job.Previous.EnvFile)
	}
	masker := mask.New(r.env.values, r.previousEnv.values)
	r.masker = masker
	out := masker.Writer(d.Out)
	defer out.Flush() // a log that cannot be written stops nothing
	r.out = out
	logrus.SetOutput(out) // the library's own warnings
	logrus.SetFormatter(&logrus.TextFormatter{DisableColors: true, DisableTimestamp: true})
	var emitting sync.Mutex // what waits for the engine may do so beside the library
	r.emit = func(p task.Phase, text string) {
		emitting.Lock()
		defer emitting.Unlock()
		d.Emit(task.Event{Time: time.Now().UTC(), Component: "deploy", Phase: p, Text: masker.String(text)})
	}

	res := r.do(ctx)
	res.Message, res.Error = masker.String(res.Message), masker.String(res.Error)
	res.LogTail = masker.Strings(res.LogTail)
	return res
}

func (r *run) do(ctx context.Context) deployment.Result {
	if err := check(r.job); err != nil {
		return r.refused(err)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, r.job.Timeout, errTimeout)
	defer cancel()
	r.emit(task.PhasePreflight, fmt.Sprintf("checking release %s", r.job.Release.Version))

	opening := ctx
	if r.job.Action == deployment.ActionRecover {
		// Also when interrupted: half-way is the one state that must not stay.
		var cancel context.CancelFunc
		opening, cancel = r.restoreContext(ctx)
		defer cancel()
	}
	var err error
	if r.store, err = openStore(opening, r.job.Compose.WorkingDir); err != nil {
		return r.refused(err)
	}
	defer r.store.close()
	if r.engine, err = connect(opening, r.out, r.away(task.PhasePreflight)); err != nil {
		return r.refused(err)
	}
	defer r.engine.close() // nothing is left to be sent
	if r.job.Action == deployment.ActionRecover {
		return r.recover(ctx)
	}
	return r.deploy(ctx)
}

// away returns what to do when the engine has to be waited for in phase p:
// people who follow the task are told why it does not get on.
func (r *run) away(p task.Phase) func(error) {
	return func(err error) {
		note(r.out, "%v; waiting for it", err)
		r.emit(p, fmt.Sprintf("%v; waiting for it", err))
	}
}

// persist does what again when the engine was away meanwhile; see engine.persist.
func (r *run) persist(ctx context.Context, p task.Phase, what func() error) error {
	return r.engine.persist(ctx, r.away(p), what)
}

// line masks text and makes one line of it, in this order: a secret whose blanks
// were joined, or which was cut, would not be found any more.
func (r *run) line(text string) string { return oneLine(r.masker.String(text)) }

// check refuses a job that this program cannot carry out.
func check(job deployment.Job) error {
	c := job.Compose
	switch {
	case c == nil:
		return errors.New("the job names no Compose project")
	case c.Project == "" || loader.NormalizeProjectName(c.Project) != c.Project:
		return fmt.Errorf("compose project name %q: it may hold lower-case letters, digits, - and _, and starts with a letter or digit", c.Project)
	case !filepath.IsAbs(c.WorkingDir):
		return fmt.Errorf("compose.working_dir %q is not an absolute path", c.WorkingDir)
	case job.Timeout <= 0 || job.RestoreTimeout <= 0:
		return errors.New("the job's timeouts must be positive")
	case job.Action != deployment.ActionDeploy && job.Action != deployment.ActionRecover:
		return fmt.Errorf("the job asks for the unknown action %q", job.Action)
	}
	return nil
}

// desired is a release ready to be brought up.
type desired struct {
	release deployment.Release
	bundle  string // its name in the store
	fresh   bool   // the bundle was kept just now
	project *types.Project
}

// prepare keeps and loads a release. It changes nothing that runs. On an error
// a bundle it had just kept is gone again.
func (r *run) prepare(ctx context.Context, rel deployment.Release, env rowEnv, envErr error) (_ *desired, err error) {
	if envErr != nil {
		return nil, envErr
	}
	d := &desired{release: rel}
	var ignored bool
	if d.bundle, d.fresh, ignored, err = r.store.keep(ctx, rel); err != nil {
		return nil, err
	}
	if ignored {
		note(r.out, "the .env inside release %s is ignored: its env comes from the database", rel.Version)
	}
	defer func() {
		if err != nil {
			r.discard(d)
		}
	}()
	dir := r.store.path(d.bundle)
	if !d.fresh {
		if err = r.trust(d, env); err != nil {
			return nil, err
		}
	}
	if override := overrideFile(dir); override != "" {
		note(r.out, "%s of release %s is not used: the Compose file stands alone", override, rel.Version)
	}
	if d.project, err = load(ctx, dir, r.job.Compose.Project, env); err != nil {
		return nil, err
	}
	if err = r.store.labelContents(d.project, dir); err != nil {
		return nil, err
	}
	for _, m := range fleeting(d.project, dir) {
		note(r.out, "WARNING: %s is a bind mount of a path that release %s does not hold; what is written there is not seen by other releases: use a named volume or an absolute path", m, rel.Version)
	}
	return d, nil
}

// trust makes sure that a bundle kept earlier is still the release it is named
// after. To bring back what served before, a changed one is better than nothing.
func (r *run) trust(d *desired, env rowEnv) error {
	if d.release.PayloadDir != "" {
		changed, err := r.store.putBack(d.bundle, d.release, env)
		if len(changed) > 0 {
			note(r.out, "WARNING: %s of the kept release %s had been changed on this host: put back as the release has it", strings.Join(changed, ", "), d.release.Version)
		}
		return err
	}
	changed, err := r.store.altered(d.bundle, env)
	if err != nil || len(changed) == 0 {
		return err
	}
	text := fmt.Sprintf("%s of the kept release %s was changed on this host after it was kept", strings.Join(changed, ", "), d.release.Version)
	if same(d.release, r.job.Release) {
		return fmt.Errorf("%s: move %s away, and deploy the release from the database", text, r.store.path(d.bundle))
	}
	note(r.out, "WARNING: %s; it is used all the same", text)
	return nil
}

// discard removes the bundle of a release that was refused.
func (r *run) discard(d *desired) {
	if d == nil || !d.fresh {
		return
	}
	if err := r.store.remove(d.bundle); err != nil {
		note(r.out, "the bundle of the refused release stays: %v", err)
	}
}

func (r *run) deploy(ctx context.Context) deployment.Result {
	if err := r.uncovered(); err != nil {
		return r.refused(err)
	}
	d, err := r.prepare(ctx, r.job.Release, r.env, r.envErr)
	if err != nil {
		return r.refused(err)
	}
	var before []container.Summary
	err = r.persist(ctx, task.PhasePreflight, func() (err error) {
		before, err = r.engine.list(ctx, d.project.Name)
		return err
	})
	if err == nil {
		r.tagged = r.references(ctx, before)
		r.forewarn()
		err = r.persist(ctx, task.PhasePreflight, func() error { return r.ensureImages(ctx, d.project, false) })
	}
	if err == nil {
		err = r.gate(ctx)
	}
	if err == nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		r.discard(d)
		return r.refused(err)
	}
	// What an earlier attempt of this task left of a first installation is one still.
	first := !slices.ContainsFunc(before, r.notFirst)
	r.emit(task.PhaseApplying, fmt.Sprintf("bringing up release %s: %s", d.release.Version, count(len(d.project.Services), "service")))
	if err := r.up(ctx, d, first); err != nil {
		return r.afterFailure(ctx, d, first, err)
	}
	return r.succeeded(context.WithoutCancel(ctx), d)
}

// forewarn says beforehand when a failure could not be undone.
func (r *run) forewarn() {
	prev := r.job.Previous
	if prev == nil || same(*prev, r.job.Release) || prev.PayloadDir != "" || r.store.has(bundleName(*prev)) {
		return
	}
	r.emit(task.PhasePreflight, fmt.Sprintf("release %s is no longer kept: if release %s fails, it cannot be restored", prev.Version, r.job.Release.Version))
}

// same reports whether two releases are the same artifact.
func same(a, b deployment.Release) bool {
	if a.ArtifactID != "" || b.ArtifactID != "" {
		return a.ArtifactID == b.ArtifactID
	}
	return a.SHA256 == b.SHA256
}

// refused is the Result of a job that changed nothing. One that was to repair
// what another process left half-way cannot say so.
func (r *run) refused(err error) deployment.Result {
	rel := r.job.Release.Version
	text := r.line(err.Error())
	if errors.Is(err, errTimeout) && text == errTimeout.Error() {
		text = fmt.Sprintf("the preparations were not done after %s", r.job.Timeout)
	}
	if r.job.Action == deployment.ActionRecover {
		return deployment.Result{
			Message: fmt.Sprintf("the deployment of release %s died half-way, and what serves now is not known: look at the host", rel),
			Error:   r.died() + "; it could not be repaired: " + text,
			Touched: true,
		}
	}
	res := deployment.Result{
		Message: fmt.Sprintf("release %s was not deployed, and nothing was changed", rel),
		Error:   text,
	}
	if r.job.Previous != nil {
		res.Serving = r.job.Previous.Version
	}
	return res
}

// died is the sentence about the process that the job follows.
func (r *run) died() string {
	return "the deployment process died while it brought up release " + r.job.Release.Version
}

// succeeded is the Result of a release that is up.
func (r *run) succeeded(ctx context.Context, d *desired) deployment.Result {
	if err := r.store.setCurrent(d.bundle); err != nil {
		note(r.out, "%v", err) // the link is for people only
	}
	if err := r.store.remember(r.served(d.release)); err != nil {
		note(r.out, "%v; a rollback while the database is away will not know of release %s", err, d.release.Version)
	}
	r.tidy(ctx, d.bundle)
	return deployment.Result{
		Succeeded: true,
		Message:   fmt.Sprintf("release %s is up: %s", d.release.Version, count(len(d.project.Services), "service")),
		Serving:   d.release.Version,
		Touched:   true,
	}
}

// tidy removes old bundles, but not serving and the one before it.
func (r *run) tidy(ctx context.Context, serving string) {
	needed := []string{serving}
	if r.job.Previous != nil {
		needed = append(needed, bundleName(*r.job.Previous))
	}
	r.prune(ctx, r.job.Compose.Keep, needed...)
}
