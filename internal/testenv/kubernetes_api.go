package testenv

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"
)

// KubernetesError is what the API server answered to a request it refused.
type KubernetesError struct {
	Code    int    // HTTP status
	Reason  string // such as "NotFound", "Forbidden", "AlreadyExists"
	Message string
}

func (e *KubernetesError) Error() string {
	return fmt.Sprintf("%s (%d): %s", e.Reason, e.Code, e.Message)
}

// requestTimeout bounds one request of Do.
const requestTimeout = 5 * time.Minute

// Do sends a request as cluster-admin and returns the reply: method and path
// of the REST API, with a body in JSON or "". A PATCH is a merge patch. The
// error wraps a *KubernetesError where the server refused.
func (k *Kubernetes) Do(method, path, body string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	resp, err := k.send(ctx, method, path, body)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	out, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	return out, nil
}

func (k *Kubernetes) send(ctx context.Context, method, path, body string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, k.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	req.Header.Set("Content-Type", "application/json")
	if method == http.MethodPatch {
		req.Header.Set("Content-Type", "application/merge-patch+json")
	}
	resp, err := k.client.Do(req)
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", method, path, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	refused := &KubernetesError{Code: resp.StatusCode}
	out, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<16))
	if json.Unmarshal(out, refused) != nil {
		refused.Message = string(out)
	}
	refused.Code = resp.StatusCode
	return nil, fmt.Errorf("%s %s: %w", method, path, refused)
}

// Await waits until done returns true for the object called name of the
// collection, a path such as "/apis/apps/v1/namespaces/NS/deployments". It is
// called with the object in JSON at once, after each change, and with nil
// where there is none.
func (k *Kubernetes) Await(ctx context.Context, collection, name string, done func(object []byte) bool) error {
	selector := "?fieldSelector=" + url.QueryEscape("metadata.name="+name)
	var last []byte
	for {
		resp, err := k.send(ctx, http.MethodGet, collection+selector, "")
		if err != nil {
			return awaitError(collection, name, last, err)
		}
		var list struct {
			Metadata struct{ ResourceVersion string }
			Items    []json.RawMessage
		}
		err = json.NewDecoder(resp.Body).Decode(&list)
		resp.Body.Close()
		if err != nil {
			return awaitError(collection, name, last, err)
		}
		last = nil
		if len(list.Items) > 0 {
			last = list.Items[0]
		}
		if done(last) {
			return nil
		}
		resp, err = k.send(ctx, http.MethodGet, collection+selector+"&watch=true&resourceVersion="+list.Metadata.ResourceVersion, "")
		if err != nil {
			return awaitError(collection, name, last, err)
		}
		ok := watch(resp.Body, &last, done)
		resp.Body.Close()
		if ok {
			return nil
		}
		// The server ends a watch after a while, and one that it lost track of.
		if ctx.Err() != nil {
			return awaitError(collection, name, last, ctx.Err())
		}
	}
}

// watch reads events until done or the end.
func watch(events io.Reader, last *[]byte, done func([]byte) bool) bool {
	decoder := json.NewDecoder(bufio.NewReader(events))
	for {
		var event struct {
			Type   string
			Object json.RawMessage
		}
		if decoder.Decode(&event) != nil || event.Type == "ERROR" {
			return false
		}
		*last = event.Object
		if event.Type == "DELETED" {
			*last = nil
		}
		if done(*last) {
			return true
		}
	}
}

func awaitError(collection, name string, last []byte, err error) error {
	const most = 4000
	if len(last) > most {
		last = last[len(last)-most:] // the status is at the end
	}
	return fmt.Errorf("wait for %s/%s: %w; it was last %q", collection, name, err, last)
}

// HasCondition returns a function for Await: whether the object's condition of
// the given type is true.
func HasCondition(kind string) func([]byte) bool {
	return func(object []byte) bool {
		var o struct {
			Status struct {
				Conditions []struct{ Type, Status string }
			}
		}
		if json.Unmarshal(object, &o) != nil {
			return false
		}
		for _, c := range o.Status.Conditions {
			if c.Type == kind {
				return c.Status == "True"
			}
		}
		return false
	}
}

// Served is what tests look at in a Deployment: its template's image and
// annotation "version", and how many of its pods are of that template and ready.
type Served struct {
	Image   string
	Version string
	Updated int
	Ready   int
}

// podTemplate is the part of a pod, or of the template for it, that Served shows.
type podTemplate struct {
	Metadata struct{ Annotations map[string]string }
	Spec     struct{ Containers []struct{ Image string } }
}

func (p podTemplate) served() Served {
	s := Served{Version: p.Metadata.Annotations["version"]}
	if len(p.Spec.Containers) > 0 {
		s.Image = p.Spec.Containers[0].Image
	}
	return s
}

// AwaitServed waits until the Deployment called name is exactly as wanted. Its
// status follows its pods with a delay, so it is waited for. The pods are not:
// as many as wanted must be ready at once. They carry the label app=name.
func (k *Kubernetes) AwaitServed(ctx context.Context, namespace, name string, want Served) error {
	out, err := k.Do(http.MethodGet, "/api/v1/namespaces/"+namespace+"/pods?labelSelector=app%3D"+name, "")
	if err != nil {
		return err
	}
	var pods struct{ Items []json.RawMessage }
	if err := json.Unmarshal(out, &pods); err != nil {
		return fmt.Errorf("read the pods of %s: %w", name, err)
	}
	ready := 0
	for _, item := range pods.Items {
		var p podTemplate
		if err := json.Unmarshal(item, &p); err != nil {
			return fmt.Errorf("read a pod of %s: %w", name, err)
		}
		if s := p.served(); s.Image == want.Image && s.Version == want.Version && HasCondition("Ready")(item) {
			ready++
		}
	}
	if ready < want.Ready {
		return fmt.Errorf("%d pods of deployment %s are ready and as wanted (%+v): %s", ready, name, want, out)
	}
	return k.Await(ctx, "/apis/apps/v1/namespaces/"+namespace+"/deployments", name, func(o []byte) bool {
		var d struct {
			Spec   struct{ Template podTemplate }
			Status struct{ UpdatedReplicas, ReadyReplicas int }
		}
		if o == nil || json.Unmarshal(o, &d) != nil {
			return false
		}
		got := d.Spec.Template.served()
		got.Updated, got.Ready = d.Status.UpdatedReplicas, d.Status.ReadyReplicas
		return got == want
	})
}

// CreateNamespace creates a namespace and waits until pods can be created in
// it, which need its service account.
func (k *Kubernetes) CreateNamespace(ctx context.Context, name string) error {
	_, err := k.Do(http.MethodPost, "/api/v1/namespaces", `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"`+name+`"}}`)
	if err != nil {
		return err
	}
	return k.awaitNamespace(ctx, name)
}

func (k *Kubernetes) awaitNamespace(ctx context.Context, name string) error {
	return k.Await(ctx, "/api/v1/namespaces/"+name+"/serviceaccounts", "default", func(o []byte) bool { return o != nil })
}

// Namespace returns a namespace of the test's own. It is deleted when the test
// ends, with all that is in it.
func (k *Kubernetes) Namespace(t testing.TB) string {
	t.Helper()
	name := "test-" + uniqueName()
	ctx, cancel := context.WithTimeout(t.Context(), requestTimeout)
	defer cancel()
	if err := k.CreateNamespace(ctx, name); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var refused *KubernetesError
		_, err := k.Do(http.MethodDelete, "/api/v1/namespaces/"+name, "")
		if err != nil && !(errors.As(err, &refused) && refused.Code == http.StatusNotFound) {
			t.Error(err)
		}
	})
	return name
}

// Kubeconfig writes a kubeconfig of cluster-admin to path, by way of address,
// which may be that of a Proxy, or "" for none.
func (k *Kubernetes) Kubeconfig(path, address string) error {
	server := k.URL
	if address != "" {
		server = "https://" + address
	}
	return writeKubeconfig(path, server, k.authority.pem, kubeUser{pair: k.admin})
}

// ServiceAccountKubeconfig writes a kubeconfig for a service account, with a
// token of an hour, and returns its path. The account is created where it is
// missing, and may do nothing that no role binding allows it.
func (k *Kubernetes) ServiceAccountKubeconfig(namespace, account string) (string, error) {
	accounts := "/api/v1/namespaces/" + namespace + "/serviceaccounts"
	_, err := k.Do(http.MethodPost, accounts, `{"apiVersion":"v1","kind":"ServiceAccount","metadata":{"name":"`+account+`"}}`)
	var refused *KubernetesError
	if err != nil && !(errors.As(err, &refused) && refused.Code == http.StatusConflict) {
		return "", err
	}
	out, err := k.Do(http.MethodPost, accounts+"/"+account+"/token",
		`{"apiVersion":"authentication.k8s.io/v1","kind":"TokenRequest","spec":{"expirationSeconds":3600}}`)
	if err != nil {
		return "", err
	}
	var reply struct{ Status struct{ Token string } }
	if err := json.Unmarshal(out, &reply); err != nil {
		return "", fmt.Errorf("read the token of %s/%s: %w", namespace, account, err)
	}
	path := k.path("account-" + namespace + "-" + account + ".kubeconfig")
	return path, writeKubeconfig(path, k.URL, k.authority.pem, kubeUser{token: reply.Status.Token, namespace: namespace})
}

// kubeUser is whom a kubeconfig is for: one with a certificate or a token.
type kubeUser struct {
	pair      *keyPair
	token     string
	namespace string // where commands work that name none
}

// writeKubeconfig writes a kubeconfig, in JSON, which is YAML as well.
func writeKubeconfig(path, server string, ca []byte, u kubeUser) error {
	type object = map[string]any
	user := object{"token": u.token}
	if u.pair != nil {
		user = object{"client-certificate-data": u.pair.cert, "client-key-data": u.pair.key}
	}
	content, err := json.Marshal(object{
		"apiVersion": "v1", "kind": "Config", "current-context": "test",
		"clusters": []object{{"name": "test", "cluster": object{"server": server, "certificate-authority-data": ca}}},
		"users":    []object{{"name": "test", "user": user}},
		"contexts": []object{{"name": "test", "context": object{"cluster": "test", "user": "test", "namespace": u.namespace}}},
	})
	if err != nil {
		return fmt.Errorf("encode kubeconfig: %w", err)
	}
	if err := os.WriteFile(path, content, 0o600); err != nil {
		return fmt.Errorf("write kubeconfig: %w", err)
	}
	return nil
}
