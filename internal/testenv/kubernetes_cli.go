package testenv

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Helm runs the standard helm program as cluster-admin and returns what it
// printed on standard output. Its error quotes standard error. The program is
// built where that was never done; see BuildHelmCLI.
func (k *Kubernetes) Helm(args ...string) (string, error) {
	path, err := BuildHelmCLI(context.Background())
	if err != nil {
		return "", err
	}
	return k.run(exec.Command(path, args...), "helm", "")
}

// Kubectl runs kubectl as cluster-admin, as Helm does helm.
func (k *Kubernetes) Kubectl(args ...string) (string, error) {
	return k.kubectl("", args...)
}

// Apply runs kubectl apply on a manifest, which may hold several objects.
func (k *Kubernetes) Apply(namespace, manifest string) error {
	_, err := k.kubectl(manifest, "apply", "--namespace", namespace, "--filename", "-")
	return err
}

func (k *Kubernetes) kubectl(stdin string, args ...string) (string, error) {
	cmd := exec.Command(k.program)
	cmd.Args = append([]string{"kubectl"}, args...)
	return k.run(cmd, "kubectl", stdin)
}

// Script runs a shell script with helm and kubectl on its path, as cluster-admin, in
// the given directory. It returns what the script printed on standard output.
func (k *Kubernetes) Script(dir, script string) (string, error) {
	helm, err := BuildHelmCLI(context.Background())
	if err != nil {
		return "", err
	}
	bin, err := os.MkdirTemp(k.path(""), "bin-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(bin)
	for name, program := range map[string]string{"helm": helm, "kubectl": k.program} {
		if err := os.Symlink(program, filepath.Join(bin, name)); err != nil {
			return "", err
		}
	}
	cmd := exec.Command("/bin/sh", "-ec", "PATH="+bin+":$PATH\n"+script)
	cmd.Dir = dir
	return k.run(cmd, "the script", "")
}

// run gives cmd nothing of the user's own settings, and no home but ours.
func (k *Kubernetes) run(cmd *exec.Cmd, name, stdin string) (string, error) {
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + k.path("user"), "KUBECONFIG=" + k.AdminKubeconfig}
	var out, complaint bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &complaint
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("run %s: %w: %s", name, err, tail(complaint.Bytes()))
	}
	return out.String(), nil
}
