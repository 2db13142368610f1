package testenv

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	_ "embed"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"
)

// Annotations of a pod, and so of the template in a Deployment, a StatefulSet
// or a Job, that say how its life goes. Without any, a pod is ready at once,
// and a Job's pod succeeds at once.
const (
	// FailAnnotation is one of the Fail values.
	FailAnnotation = "wrktalk.test/fail"
	// StartAfterAnnotation delays the start of the containers: "5s".
	StartAfterAnnotation = "wrktalk.test/start-after"
	// RunForAnnotation is how long a Job's pod runs before it ends: "5s".
	RunForAnnotation = "wrktalk.test/run-for"
	// StopAfterAnnotation is how long a deleted pod takes to go: "5s".
	StopAfterAnnotation = "wrktalk.test/stop-after"
)

// Values of FailAnnotation.
const (
	FailCrash     = "crash"     // running, its containers waiting: CrashLoopBackOff
	FailImagePull = "imagepull" // pending, its containers waiting: ImagePullBackOff
	FailPending   = "pending"   // assigned to a node that never starts it
	FailUnready   = "unready"   // running and never ready; a Job's pod never ends
	FailExit      = "exit"      // a Job's pod ends with exit code 1
)

//go:embed kubernetes_stages.yaml
var kwokStages []byte

// KubernetesOptions says how StartKubernetes runs its control plane.
type KubernetesOptions struct {
	Nodes int // nodes that run pods; 0 is 1
}

// Kubernetes is a running control plane that belongs to this process: it is
// killed when the process dies. Everything in it is real, with RBAC on, up to
// the nodes and their pods: these kwok plays, nothing runs in them, and they
// have no logs. Nor are there volumes or load balancers: a claim stays pending,
// and a Service of type LoadBalancer without an address.
type Kubernetes struct {
	URL             string // https://127.0.0.1:port
	Port            int
	AdminKubeconfig string // file; cluster-admin

	home      *ownedDir
	program   string
	authority *authority
	admin     *keyPair
	client    *http.Client
	children  []*kubeChild
	partEnded func() // ends the start: there is nothing more to wait for
	stop      sync.Once
}

// kubernetesStart bounds the start of a control plane, without its build.
const kubernetesStart = 10 * time.Minute

// StartKubernetes builds a control plane where that was never done, which
// takes minutes, and starts it on a loopback port. The caller calls Stop. The
// error wraps errNoKubernetes where it cannot be built.
func StartKubernetes(ctx context.Context, opts KubernetesOptions) (*Kubernetes, error) {
	program, err := BuildKubernetes(ctx)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, kubernetesStart)
	defer cancel()
	for attempt := 1; ; attempt++ {
		k, err := startKubernetes(ctx, program, max(opts.Nodes, 1))
		// Somebody may have taken the port that was free a moment ago.
		if err == nil || attempt == startAttempts || !errors.Is(err, errPortTaken) {
			return k, err
		}
	}
}

func startKubernetes(ctx context.Context, program string, nodes int) (_ *Kubernetes, err error) {
	home, err := newOwnedDir("wrktalk-kubernetes-")
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	k := &Kubernetes{home: home, program: program, partEnded: cancel}
	defer func() {
		if err != nil {
			err = k.blame(err)
			k.Stop()
		}
	}()
	// Unlike PostgreSQL it may run as root, and root's cache is its own.
	home.owner = nil
	if err := os.Chown(home.path, os.Geteuid(), os.Getegid()); err != nil {
		return nil, fmt.Errorf("take %s back: %w", home.path, err)
	}
	if k.Port, err = freePort(); err != nil {
		return nil, err
	}
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(k.Port))
	k.URL = "https://" + address
	if err := k.credentials(); err != nil {
		return nil, err
	}
	if err := errors.Join(k.startEtcd(), k.startAPIServer()); err != nil {
		return nil, err
	}
	if err := k.awaitReady(ctx); err != nil {
		return nil, err
	}
	if err := errors.Join(k.startControllers(), k.startScheduler(), k.startKwok()); err != nil {
		return nil, err
	}
	if err := k.startNodes(ctx, nodes); err != nil {
		return nil, err
	}
	return k, nil
}

// Stop ends the control plane, waits for its processes and removes its
// directory.
func (k *Kubernetes) Stop() {
	k.stop.Do(func() {
		// Nothing of it is to last, so nothing needs a shutdown in order.
		for _, c := range slices.Backward(k.children) {
			c.kill()
		}
		if k.client != nil {
			k.client.CloseIdleConnections()
		}
		k.home.remove()
	})
}

// credentials writes the certificates, keys and kubeconfigs of all parts.
func (k *Kubernetes) credentials() (err error) {
	if k.authority, err = newAuthority("kubernetes test authority"); err != nil {
		return err
	}
	serving, err := k.authority.issue(pkix.Name{CommonName: "kube-apiserver"}, "127.0.0.1", "localhost", "kubernetes.default.svc")
	if err != nil {
		return err
	}
	signing, err := newSigningKey()
	if err != nil {
		return err
	}
	k.admin, err = k.authority.issue(pkix.Name{CommonName: "admin", Organization: []string{"system:masters"}})
	if err != nil {
		return err
	}
	k.AdminKubeconfig = k.path("admin.kubeconfig")
	errs := []error{
		k.home.write(k.path("ca.crt"), k.authority.pem),
		k.home.write(k.path("server.crt"), serving.cert),
		k.home.write(k.path("server.key"), serving.key),
		k.home.write(k.path("accounts.key"), signing),
		k.home.write(k.path("stages.yaml"), kwokStages),
		k.Kubeconfig(k.AdminKubeconfig, ""),
	}
	for _, user := range []string{"kube-controller-manager", "kube-scheduler"} {
		pair, err := k.authority.issue(pkix.Name{CommonName: "system:" + user})
		if err != nil {
			return err
		}
		errs = append(errs, writeKubeconfig(k.path(user+".kubeconfig"), k.URL, k.authority.pem, kubeUser{pair: pair}))
	}
	pair, err := tls.X509KeyPair(k.admin.cert, k.admin.key)
	if err != nil {
		return fmt.Errorf("read the certificate of admin: %w", err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(k.authority.cert)
	k.client = &http.Client{Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}},
	}}
	return errors.Join(errs...)
}

func (k *Kubernetes) path(name string) string { return filepath.Join(k.home.path, name) }

var sharedKube struct {
	once sync.Once
	kube *Kubernetes
	err  error
}

// SharedKubernetes returns the control plane that the tests of this process
// share; each takes a Namespace of its own. Where it cannot be built the test
// is skipped, and failed in CI. Main stops it.
func SharedKubernetes(t testing.TB) *Kubernetes {
	t.Helper()
	sharedKube.once.Do(func() {
		sharedKube.kube, sharedKube.err = StartKubernetes(context.Background(), KubernetesOptions{})
		if sharedKube.err == nil {
			AtExit(sharedKube.kube.Stop)
		}
	})
	if errors.Is(sharedKube.err, errNoKubernetes) {
		Missing(t, "Kubernetes", sharedKube.err)
	}
	if sharedKube.err != nil {
		t.Fatal(sharedKube.err)
	}
	return sharedKube.kube
}
