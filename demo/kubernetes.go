package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// namespace and helmRelease are where the demo's chart goes.
const (
	namespace   = "wrktalk"
	helmRelease = "wrktalk"
)

// kubernetes returns the steps of the demo on Kubernetes.
func (d *demo) kubernetes() []func(context.Context) error {
	d.deploymentType = "kubernetes"
	k := &kubernetesDemo{demo: d}
	return []func(context.Context) error{
		d.prepare, k.controlPlane, d.database, d.start, k.install, k.upgrade, k.broken, k.rollback, k.show, d.linger,
	}
}

type kubernetesDemo struct {
	*demo
	kube *testenv.Kubernetes
}

// controlPlane starts etcd, kube-apiserver, controller-manager, scheduler and
// kwok.
func (k *kubernetesDemo) controlPlane(ctx context.Context) (err error) {
	title("Starting a Kubernetes control plane (built from source the first time, which takes minutes)")
	if k.kube, err = testenv.StartKubernetes(ctx, testenv.KubernetesOptions{}); err != nil {
		return err
	}
	k.undo = append(k.undo, func() error { k.kube.Stop(); return nil })
	k.env = append(k.env,
		"WRKTALK_AGENT_KUBE_KUBECONFIG="+k.kube.AdminKubeconfig, "WRKTALK_AGENT_KUBE_NAMESPACE="+namespace,
		"WRKTALK_AGENT_HELM_RELEASE_NAME="+helmRelease, "WRKTALK_AGENT_HELM_TIMEOUT=20s")
	k.hints = append(k.hints, "The cluster: export KUBECONFIG="+k.kube.AdminKubeconfig)
	fmt.Println(k.kube.URL)
	return nil
}

func (k *kubernetesDemo) install(ctx context.Context) error {
	title("The first release")
	return k.deploy(ctx, "1.0.0", "")
}

func (k *kubernetesDemo) upgrade(ctx context.Context) error {
	title("The next release")
	return k.deploy(ctx, "1.1.0", "")
}

// broken deploys a release whose pods crash: it has to fail, and the one before
// to serve again.
func (k *kubernetesDemo) broken(ctx context.Context) error {
	title("A release that does not come up: the one before comes back by itself")
	if err := k.deploy(ctx, "1.2.0", testenv.FailCrash); err == nil {
		return errors.New("the broken release was deployed")
	}
	return k.helm("history", helmRelease)
}

func (k *kubernetesDemo) rollback(ctx context.Context) error {
	title("A rollback on request")
	if err := k.agent(ctx, "rollback", "--wait"); err != nil {
		return k.explain(err)
	}
	return nil
}

// deploy pushes a release and deploys it.
func (k *kubernetesDemo) deploy(ctx context.Context, version, fail string) error {
	values := fmt.Sprintf("release: %q\nfail: %q\npassword: never-leaves-the-row\n", version, fail)
	if err := k.push(ctx, "helm", version, "values", version+".yaml", values); err != nil {
		return err
	}
	return k.agent(ctx, "deploy", version, "--wait")
}

// helm shows what the standard program says.
func (k *kubernetesDemo) helm(args ...string) error {
	fmt.Println("$ helm", args[0], args[1])
	out, err := k.kube.Helm(append(args, "--namespace", namespace)...)
	fmt.Print(out)
	return err
}

// show prints what a person wants to see in the end.
func (k *kubernetesDemo) show(ctx context.Context) error {
	if err := k.rows(ctx); err != nil {
		return err
	}
	title("The release, as the standard tools see it")
	if err := k.helm("history", helmRelease); err != nil {
		return err
	}
	if err := k.helm("get", "values", helmRelease); err != nil {
		return err
	}
	pods, err := k.kube.Kubectl("get", "deployments,pods", "--namespace", namespace, "--output", "wide")
	if err != nil {
		return err
	}
	fmt.Print(pods)
	if err := k.mails(ctx, 8); err != nil {
		return err
	}
	title("The staging directory")
	return k.staging(ctx)
}
