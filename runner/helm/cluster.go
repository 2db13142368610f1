package helm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/storage"
	"helm.sh/helm/v3/pkg/storage/driver"
	authnv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/restmapper"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/klog/v2"

	"github.com/wrktalk/wrktalk-agent/internal/version"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// requestTimeout bounds each request of the parent, which only reads and
// records. The child's requests end with the child.
const requestTimeout = 30 * time.Second

// A preflight asks about every right it needs; client-go's five requests per
// second would make that take long.
const (
	requestsPerSecond = 50
	requestBurst      = 100
)

// helmVersion is the release of Helm that is linked, as its standard program calls
// itself and charts see it in .Capabilities.HelmVersion. A library does not know
// more of it than v3.22.
const helmVersion = "v3.22.0"

func init() {
	kube.ManagedFieldsManager = "wrktalk-deploy"
	chartutil.DefaultCapabilities.HelmVersion.Version = helmVersion
}

// cluster is the Kubernetes API and Helm's view of it, for one namespace.
type cluster struct {
	namespace string
	config    *rest.Config
	client    kubernetes.Interface
	dynamic   dynamic.Interface
	getter    *getter
	releases  *storage.Storage
	report    *deploy.Report
	log       func(string, ...any) // for Helm
}

// connect prepares the clients; it asks the API nothing yet. Warnings of the
// server and of client-go go to the report's log. A timeout of 0 bounds no request.
func connect(h *protocol.Helm, timeout time.Duration, report *deploy.Report) (*cluster, error) {
	out := report.Log()
	config, err := restConfig(h)
	if err != nil {
		return nil, err
	}
	config.Timeout = timeout
	config.QPS, config.Burst = requestsPerSecond, requestBurst
	config.UserAgent = "wrktalk-deploy/" + version.Get().Version
	config.WarningHandler = rest.NewWarningWriter(out, rest.WarningWriterOptions{Deduplicate: true})
	quietKlog(out)

	c := &cluster{namespace: h.Namespace, config: config, report: report, log: func(format string, args ...any) {
		_, _ = fmt.Fprintf(out, strings.TrimRight(format, "\n")+"\n", args...) // a log that cannot be written stops nothing
	}}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("prepare the kubernetes client: %w", err)
	}
	if c.dynamic, err = dynamic.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("prepare the kubernetes client: %w", err)
	}
	disco, err := discovery.NewDiscoveryClientForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("prepare the kubernetes client: %w", err)
	}
	c.client = client
	c.getter = &getter{config: config, namespace: h.Namespace, discovery: memory.NewMemCacheClient(disco)}
	secrets := driver.NewSecrets(client.CoreV1().Secrets(h.Namespace))
	secrets.Log = c.log
	c.releases = storage.Init(secrets)
	c.releases.Log = c.log
	return c, nil
}

// quietKlog has client-go's log go to out, each line once: it writes an error to
// the logs of all lower severities as well.
func quietKlog(out io.Writer) {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard)
	klog.SetOutputBySeverity("INFO", out)
}

// serviceAccountToken is where Kubernetes mounts a pod's own token.
const serviceAccountToken = "/var/run/secrets/kubernetes.io/serviceaccount/token"

// restConfig finds the API as kubectl and helm do: by the kubeconfig that is
// configured, else the files that the environment variable KUBECONFIG lists, merged,
// else the service account of the pod we run in, else ~/.kube/config.
func restConfig(h *protocol.Helm) (*rest.Config, error) {
	rules, err := kubeconfig(h)
	if err != nil {
		return nil, err
	}
	if rules == nil {
		config, err := rest.InClusterConfig()
		if err != nil {
			return nil, fmt.Errorf("use the pod's service account: %w", err)
		}
		return config, nil
	}
	config, err := clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: h.Context}).ClientConfig()
	if err != nil {
		return nil, fmt.Errorf("read kubeconfig %s: %s", cmp.Or(rules.ExplicitPath, strings.Join(rules.Precedence, ":")), deploy.OneLine(err.Error()))
	}
	return config, nil
}

// kubeconfig returns which files to read, nil for the pod's service account.
func kubeconfig(h *protocol.Helm) (*clientcmd.ClientConfigLoadingRules, error) {
	pod := h.Context == "" && inCluster()
	path, hint := h.Kubeconfig, "check kube.kubeconfig"
	if path == "" {
		// As kubectl has it, files of the list that do not exist are passed over.
		list := filepath.SplitList(os.Getenv(clientcmd.RecommendedConfigPathEnvVar))
		list = slices.DeleteFunc(list, func(path string) bool { return path == "" })
		there := slices.DeleteFunc(slices.Clone(list), func(path string) bool {
			_, err := os.Stat(path)
			return errors.Is(err, fs.ErrNotExist)
		})
		switch {
		case len(there) > 0:
			return &clientcmd.ClientConfigLoadingRules{Precedence: there}, nil
		case pod:
			return nil, nil
		case len(list) > 0:
			return nil, fmt.Errorf("find the kubernetes API: no file of the variable KUBECONFIG exists (%s): correct it, or set kube.kubeconfig", strings.Join(list, ", "))
		}
		home, err := os.UserHomeDir()
		if err != nil {
			return nil, errors.New("find the kubernetes API: this is no pod, kube.kubeconfig and KUBECONFIG are not set and there is no home directory: set kube.kubeconfig")
		}
		path = filepath.Join(home, clientcmd.RecommendedHomeDir, clientcmd.RecommendedFileName)
		hint = "set kube.kubeconfig or KUBECONFIG, or run in a pod with a service account"
	}
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("find the kubernetes API: %w: %s", err, hint)
	}
	return &clientcmd.ClientConfigLoadingRules{ExplicitPath: path}, nil
}

func inCluster() bool {
	_, err := os.Stat(serviceAccountToken)
	return err == nil && os.Getenv("KUBERNETES_SERVICE_HOST") != ""
}

// reachable returns nil when the API answers and takes our credentials.
func (c *cluster) reachable(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := c.client.Discovery().RESTClient().Get().AbsPath("/version").DoRaw(ctx)
	switch {
	case err == nil:
		return nil
	case apierrors.IsUnauthorized(err):
		return fmt.Errorf("the kubernetes API at %s does not accept the agent's credentials: renew the kubeconfig or the service account's token", c.config.Host)
	default:
		return fmt.Errorf("the kubernetes API at %s does not answer: %s", c.config.Host, deploy.OneLine(err.Error()))
	}
}

// whoami returns what the API calls us, as the subject of a sentence.
func (c *cluster) whoami(ctx context.Context) string {
	review, err := c.client.AuthenticationV1().SelfSubjectReviews().Create(ctx, &authnv1.SelfSubjectReview{}, metav1.CreateOptions{})
	if err != nil || review.Status.UserInfo.Username == "" {
		return "the agent"
	}
	return "the agent's user " + review.Status.UserInfo.Username
}

// getter gives Helm and kubectl's libraries our one configuration. Their usual
// one reads KUBECONFIG and keeps a cache in the home directory.
type getter struct {
	config    *rest.Config
	namespace string
	discovery discovery.CachedDiscoveryInterface

	once   sync.Once
	mapper meta.RESTMapper
}

func (g *getter) ToRESTConfig() (*rest.Config, error) { return rest.CopyConfig(g.config), nil }

func (g *getter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	return g.discovery, nil
}

func (g *getter) ToRESTMapper() (meta.RESTMapper, error) {
	g.once.Do(func() { g.mapper = restmapper.NewDeferredDiscoveryRESTMapper(g.discovery) })
	return g.mapper, nil
}

func (g *getter) ToRawKubeConfigLoader() clientcmd.ClientConfig {
	return clientcmd.NewDefaultClientConfig(clientcmdapi.Config{},
		&clientcmd.ConfigOverrides{Context: clientcmdapi.Context{Namespace: g.namespace}})
}
