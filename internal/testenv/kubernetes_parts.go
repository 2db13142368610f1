package testenv

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// kubeChild is one part of a control plane.
type kubeChild struct {
	name    string
	process *os.Process
	log     string
	exited  chan struct{} // closed when the process was reaped
}

// errPortTaken is why a part ended that found its port in use.
var errPortTaken = errors.New("its port is taken")

// start runs the program as the part called name.
func (k *Kubernetes) start(name string, args ...string) error {
	c := &kubeChild{name: name, log: k.path(name + ".log"), exited: make(chan struct{})}
	log, err := os.Create(c.log)
	if err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	defer log.Close()
	cmd := exec.Command(k.program)
	cmd.Args = append([]string{name}, args...)
	cmd.Dir = k.home.path
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + k.home.path, "TZ=UTC"}
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		// The parent-death signal fires when the forking thread ends, so this
		// one stays until the part is gone.
		runtime.LockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(c.exited)
		k.partEnded()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", name, err)
	}
	c.process = cmd.Process
	k.children = append(k.children, c)
	return nil
}

func (c *kubeChild) kill() {
	_ = c.process.Kill()
	<-c.exited
}

// The sockets of etcd are private files, named as etcd wants it: a host
// relative to the working directory that all parts share.
const etcdURL = "unix://etcd.sock"

func (k *Kubernetes) startEtcd() error {
	// It is alone: no election may come of a beat that a busy machine delays.
	return k.start("etcd", "--name=test", "--data-dir=etcd", "--unsafe-no-fsync", "--log-level=warn",
		"--heartbeat-interval=1000", "--election-timeout=10000",
		"--listen-client-urls="+etcdURL, "--advertise-client-urls="+etcdURL,
		"--listen-peer-urls=unix://peer.sock", "--initial-advertise-peer-urls=unix://peer.sock",
		"--initial-cluster=test=unix://peer.sock")
}

func (k *Kubernetes) startAPIServer() error {
	return k.start("kube-apiserver", "--etcd-servers="+etcdURL,
		"--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+strconv.Itoa(k.Port),
		"--endpoint-reconciler-type=none", // it refuses to publish a loopback address
		"--tls-cert-file=server.crt", "--tls-private-key-file=server.key", "--client-ca-file=ca.crt",
		"--authorization-mode=RBAC", "--allow-privileged", "--profiling=false",
		"--service-account-issuer=https://kubernetes.default.svc",
		"--service-account-key-file=accounts.key", "--service-account-signing-key-file=accounts.key",
		"--service-cluster-ip-range=10.96.0.0/16",
		// The controller that would take its taint off a node does not run.
		"--disable-admission-plugins=TaintNodesByCondition")
}

// controllers are those that objects of a chart need, and none that would need
// a cloud, a kubelet or a volume.
var controllers = []string{
	"deployment-controller", "replicaset-controller", "statefulset-controller", "daemonset-controller",
	"job-controller", "cronjob-controller", "ttl-after-finished-controller", "disruption-controller",
	"namespace-controller", "garbage-collector-controller", "pod-garbage-collector-controller",
	"serviceaccount-controller", "root-ca-certificate-publisher-controller", "clusterrole-aggregation-controller",
	"endpoints-controller", "endpointslice-controller", "resourcequota-controller",
}

func (k *Kubernetes) startControllers() error {
	return k.start("kube-controller-manager", "--kubeconfig=kube-controller-manager.kubeconfig",
		"--leader-elect=false", "--secure-port=0", "--profiling=false", "--use-service-account-credentials",
		"--service-account-private-key-file=accounts.key", "--root-ca-file=ca.crt",
		"--controllers="+strings.Join(controllers, ","))
}

func (k *Kubernetes) startScheduler() error {
	return k.start("kube-scheduler", "--kubeconfig=kube-scheduler.kubeconfig",
		"--leader-elect=false", "--secure-port=0", "--profiling=false")
}

func (k *Kubernetes) startKwok() error {
	return k.start("kwok", "--kubeconfig="+k.AdminKubeconfig, "--config=stages.yaml",
		"--manage-all-nodes", "--node-ip=127.0.0.1", "--cidr=10.0.0.0/16", "--node-lease-duration-seconds=40")
}

// startNodes creates nodes and waits until kwok answers for them, and until
// the controllers answer for the namespace that exists from the start.
func (k *Kubernetes) startNodes(ctx context.Context, n int) error {
	for i := range n {
		name := "node-" + strconv.Itoa(i+1)
		node := `{"apiVersion":"v1","kind":"Node","metadata":{"name":"` + name + `","labels":{"kubernetes.io/os":"linux","kubernetes.io/arch":"amd64","kubernetes.io/hostname":"` + name + `"}}}`
		if _, err := k.Do("POST", "/api/v1/nodes", node); err != nil {
			return err
		}
		if err := k.Await(ctx, "/api/v1/nodes", name, HasCondition("Ready")); err != nil {
			return err
		}
	}
	return k.awaitNamespace(ctx, "default")
}

// awaitReady waits until the API server is ready, which it does not announce.
func (k *Kubernetes) awaitReady(ctx context.Context) error {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		resp, err := k.client.Get(k.URL + "/readyz")
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return nil
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for kube-apiserver: %w", ctx.Err())
		}
	}
}

// blame adds to err what the part said that ended by itself, or the end of
// what each said where none did.
func (k *Kubernetes) blame(err error) error {
	var said []string
	for _, c := range k.children {
		content, _ := os.ReadFile(c.log)
		select {
		case <-c.exited:
			if bytes.Contains(content, []byte("address already in use")) {
				return fmt.Errorf("run %s: %w", c.name, errPortTaken)
			}
			return fmt.Errorf("run %s: it ended by itself and said: %s", c.name, tail(content))
		default:
			said = append(said, c.name+": "+tail(content))
		}
	}
	return fmt.Errorf("%w; %s", err, strings.Join(said, "; "))
}
