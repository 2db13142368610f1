package helm

import (
	"cmp"
	"context"
	"fmt"
	"maps"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/release"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// Preflight starts the step that deploys the release, which checks first all that
// can be checked, and has it wait for approval.
func (b *backend) Preflight(ctx context.Context) error {
	c := command{Name: commandUpgrade, Action: actionDeploy, AwaitApproval: true}
	if b.target != nil {
		c.Name, c.Revision = commandRollback, b.target.Version
	}
	s, err := b.start(ctx, c)
	if err != nil {
		return err
	}
	if !s.run(ctx) {
		return s.outcome.err
	}
	b.prepared = s
	return nil
}

// checkUpgrade checks in the child all that Helm would find out only after it had
// begun, and returns what the upgrade will need.
func (e *executor) checkUpgrade(ctx context.Context) (p plan, err error) {
	job, h := e.command.Job, e.command.Job.Helm
	values, ch, err := readRelease(job.Release)
	if err != nil {
		return p, err
	}
	if ch.Metadata.Deprecated {
		e.cluster.log("WARNING: chart %s is deprecated", ch.Name())
	}
	past, err := e.cluster.readHistory(h.Release)
	if err != nil {
		return p, err
	}
	current, err := e.currentResources(past)
	if err != nil {
		return p, err
	}
	if p.newNamespace, err = e.cluster.namespaceMissing(ctx); err != nil {
		return p, err
	}
	install := past.installs()
	r, err := e.cluster.render(ch, values, past.releaseOptions(h))
	if err != nil {
		return p, err
	}
	secrets := secretsOfRelease(r.release)
	e.report.Learn(secrets...)
	e.conn.sendSecrets(secrets)
	if err := e.cluster.build(e.client, r, true, install); err != nil {
		return p, err
	}
	if err := e.checkPolicy(ctx, r); err != nil {
		return p, err
	}
	if install {
		if p.newCRDs, err = e.cluster.crdsMissing(r); err != nil {
			return p, err
		}
	}
	p.labels = releaseLabels(job.Release)
	maps.Copy(p.labels, taskLabels(job, e.command.Action))
	r.release.Labels = p.labels
	if err := checkRecord(r.release); err != nil {
		return p, err
	}
	if err := e.cluster.checkPermissions(ctx, permissionsFor(r, current, h.Namespace, p.newNamespace, p.newCRDs)); err != nil {
		return p, err
	}
	if err := checkOwners(r, current); err != nil {
		return p, err
	}
	// What a first installation that never served left is removed first.
	try := &rehearsal{release: r.release, targets: r.targets, adopts: true, fresh: past.neverServed()}
	if !try.fresh {
		if err := e.cluster.checkHooks(e.client.Client, r, install); err != nil {
			return p, err
		}
	}
	if p.newNamespace {
		try.makes = []string{h.Namespace}
	}
	if install {
		return p, e.rehearse(ctx, try, nil, nil, release.HookPreInstall, release.HookPostInstall)
	}
	try.compared = current
	return p, e.rehearse(ctx, try, past, cmp.Or(past.serving(), past.last()), release.HookPreUpgrade, release.HookPostUpgrade)
}

// releaseOptions are those that the next revision is rendered with.
func (h history) releaseOptions(settings *protocol.Helm) chartutil.ReleaseOptions {
	install := h.installs()
	o := chartutil.ReleaseOptions{Name: settings.Release, Namespace: settings.Namespace, Revision: 1, IsInstall: install, IsUpgrade: !install}
	if last := h.last(); last != nil && !h.neverServed() {
		o.Revision = last.Version + 1
	}
	return o
}

// checkRollback checks in the child that the release can go back to a revision.
func (e *executor) checkRollback(ctx context.Context) error {
	h := e.command.Job.Helm
	past, err := e.cluster.readHistory(h.Release)
	if err != nil {
		return err
	}
	target := past.newest(func(rel *release.Release) bool { return rel.Version == e.command.Revision })
	if target == nil {
		return fmt.Errorf("revision %d of release %s is gone", e.command.Revision, h.Release)
	}
	current, err := e.currentResources(past)
	if err != nil {
		return err
	}
	r := &rendered{release: target}
	if err := e.cluster.build(e.client, r, false, false); err != nil {
		return err
	}
	if err := e.checkPolicy(ctx, r); err != nil {
		return err
	}
	if err := e.cluster.checkPermissions(ctx, permissionsFor(r, current, h.Namespace, false, false)); err != nil {
		return err
	}
	compared, err := e.resourcesOf(past.last())
	if err != nil {
		return err
	}
	try := &rehearsal{release: target, targets: r.targets, compared: compared}
	return e.rehearse(ctx, try, past, past.last(), release.HookPreRollback, release.HookPostRollback)
}
