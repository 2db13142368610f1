package helm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/storage/driver"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/resource"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// uninstall removes a first installation that failed, its hooks too, and waits
// until it is gone: the next installation would meet objects that are about to go.
func (e *executor) uninstall() error {
	name := e.command.Job.Helm.Release
	past, err := e.cluster.readHistory(name)
	if err != nil || len(past) == 0 {
		return err
	}
	u := action.NewUninstall(e.configuration(nil))
	u.Timeout = time.Until(e.command.Until)
	if _, err := u.Run(name); err != nil {
		// A hook that cannot run must not keep the rest in place.
		e.cluster.log("uninstalling failed: %v; trying without hooks", err)
		u.DisableHooks = true
		if _, err := u.Run(name); err != nil && !errors.Is(err, driver.ErrReleaseNotFound) {
			return err
		}
	}
	for _, rel := range past {
		if err := e.deleteHooks(rel); err != nil {
			return err
		}
	}
	return e.awaitGone(past.last())
}

// awaitGone waits until the objects of rel are gone, those apart that are to be
// kept.
func (e *executor) awaitGone(rel *release.Release) error {
	list, err := e.client.Build(bytes.NewBufferString(rel.Manifest), false)
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, outlives)
	if e.client.WaitForDelete(list, time.Until(e.command.Until)) == nil {
		return nil
	}
	return fmt.Errorf("%s not gone yet, though deleted", strings.Join(existing(list), ", "))
}

// outlives reports whether an object is to outlive its release.
func outlives(info *resource.Info) bool {
	notes, err := accessor.Annotations(info.Object)
	return err == nil && notes[kube.ResourcePolicyAnno] == kube.KeepPolicy
}

// madeBy reports whether hook h made the object: it may have failed because
// somebody else's was there. The two clocks need not agree to the second.
func madeBy(info *resource.Info, h *release.Hook) bool {
	if info.Get() != nil {
		return false // gone, or not ours to see
	}
	made, err := meta.Accessor(info.Object)
	return err == nil && made.GetCreationTimestamp().After(h.LastRun.StartedAt.Time.Add(-time.Minute))
}

// deleteHooks deletes what the hooks of rel made. Helm leaves it: it serves to
// look into a failure, which has been explained by now.
func (e *executor) deleteHooks(rel *release.Release) error {
	policy := metav1.DeletePropagationBackground
	for _, h := range rel.Hooks {
		if h.LastRun.StartedAt.IsZero() || h.Kind == "CustomResourceDefinition" {
			continue
		}
		list, err := e.client.Build(bytes.NewBufferString(h.Manifest), false)
		if err != nil {
			return fmt.Errorf("remove hook %s: %s", h.Path, deploy.OneLine(err.Error()))
		}
		for _, info := range list {
			if outlives(info) || !madeBy(info, h) {
				continue
			}
			_, err := resource.NewHelper(info.Client, info.Mapping).DeleteWithOptions(info.Namespace, info.Name, &metav1.DeleteOptions{PropagationPolicy: &policy})
			if err != nil && !apierrors.IsNotFound(err) {
				return fmt.Errorf("remove hook %s: %s", describe(info), deploy.OneLine(err.Error()))
			}
		}
	}
	return nil
}
