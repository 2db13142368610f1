package main

import (
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/config"
	"github.com/wrktalk/wrktalk-agent/internal/platform"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// deployment is this agent's platform with what the configuration says about it.
type deployment struct {
	platform.Platform
	target      taskdb.Target
	description string // of the target, for people
	settings    protocol.Settings

	timeout        time.Duration // of bringing a release up
	restoreTimeout time.Duration // of bringing the previous one back

	workingDir string   // where bundles are kept; "" unless Platform.KeepsBundles
	checkArgs  []string // of wrktalk-deploy check
}

// deploymentOf is where the sections of the configuration that belong to one
// platform alone become settings.
func deploymentOf(cfg *config.Config) deployment {
	d := deployment{
		Platform: platform.Of(cfg.Agent.DeploymentType),
		target:   taskdb.Target{Deployment: cfg.Agent.DeploymentType, Namespace: cfg.Kube.Namespace},
	}
	d.settings.Policy = cfg.Rules()
	switch d.Type {
	case task.DeploymentDocker:
		c := cfg.Compose
		d.target.Name = c.ProjectName
		d.description = fmt.Sprintf("Compose project %s", c.ProjectName)
		d.timeout, d.restoreTimeout, d.workingDir = c.Timeout, c.RestoreTimeout, c.WorkingDir
		d.checkArgs = []string{c.WorkingDir}
		d.settings.Compose = &protocol.Compose{
			Project: c.ProjectName, WorkingDir: c.WorkingDir, Keep: c.KeepReleases, StableFor: c.Settle,
		}
	case task.DeploymentKubernetes:
		d.target.Name = cfg.Helm.ReleaseName
		d.description = fmt.Sprintf("Helm release %s in namespace %s", cfg.Helm.ReleaseName, cfg.Kube.Namespace)
		d.timeout, d.restoreTimeout = cfg.Helm.Timeout, cfg.Helm.Timeout
		d.settings.Helm = &protocol.Helm{
			Namespace: cfg.Kube.Namespace, Release: cfg.Helm.ReleaseName,
			Kubeconfig: cfg.Kube.Kubeconfig, Context: cfg.Kube.Context, HistoryMax: cfg.Helm.HistoryMax,
		}
		d.settings.Helm.OwnPod, d.settings.Helm.OwnNamespace = ownPod()
		d.checkArgs = []string{cfg.Kube.Namespace, cfg.Kube.Kubeconfig, cfg.Kube.Context}
	}
	return d
}

// namespaceFile is where Kubernetes tells a pod its namespace.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// ownPod returns the name of the pod that this process runs in, and its namespace;
// nothing outside of Kubernetes. The name is the host's, unless the pod asks for another.
func ownPod() (name, namespace string) {
	if os.Getenv("KUBERNETES_SERVICE_HOST") == "" {
		return "", ""
	}
	data, err := os.ReadFile(namespaceFile)
	if err != nil {
		return "", ""
	}
	return hostname(), strings.TrimSpace(string(data))
}

// checkWorkingDir returns why the working directory cannot be used, nil where there
// is none.
func (d deployment) checkWorkingDir() error {
	if !d.KeepsBundles {
		return nil
	}
	return protocol.CheckWorkingDir(d.workingDir)
}
