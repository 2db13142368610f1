package helm

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/kube"
	"helm.sh/helm/v3/pkg/release"
	"sigs.k8s.io/yaml"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
)

// maxRefusals bounds how many refusals one sentence tells.
const maxRefusals = 10

// checkPolicy refuses objects that ask for more than the policy allows, and says
// all of it at once, each with its template, its name and its field.
func (e *executor) checkPolicy(ctx context.Context, r *rendered) error {
	c := policyCheck{
		rules: e.command.Job.Policy, namespace: e.command.Job.Helm.Namespace,
		objects: map[[2]string]scope{}, ownKinds: r.ownKinds, account: e.cluster.ownAccount(ctx),
	}
	// A path of a node is not one of this host, as a rule.
	c.rules.Parents = policy.ParentsAllow
	for _, list := range []kube.ResourceList{r.targets, r.hooks} {
		for _, info := range list {
			c.objects[[2]string{info.Mapping.GroupVersionKind.Kind, info.Name}] = scope{info.Namespaced(), info.Namespace}
		}
	}
	for _, doc := range sortedDocs(r.release.Manifest) {
		c.document(source(doc), doc)
	}
	for _, h := range r.release.Hooks {
		if slices.ContainsFunc(h.Events, func(e release.HookEvent) bool { return e != release.HookTest }) {
			c.document("hook "+h.Path, h.Manifest)
		}
	}
	if r.release.Chart != nil && r.release.Version == 1 {
		for _, obj := range r.release.Chart.CRDObjects() {
			for _, doc := range sortedDocs(string(obj.File.Data)) {
				c.document("file "+obj.Filename, doc)
			}
		}
	}
	return c.err()
}

// ownAccount returns the service account that the agent is in the cluster, as
// namespace/name; "" when it is none.
func (c *cluster) ownAccount(ctx context.Context) string {
	_, account, ok := strings.Cut(c.whoami(ctx), "system:serviceaccount:")
	if !ok {
		return ""
	}
	return strings.Replace(account, ":", "/", 1)
}

// scope is where an object lives.
type scope struct {
	namespaced bool
	namespace  string
}

// policyCheck goes through the objects of a release.
type policyCheck struct {
	rules     policy.Rules
	namespace string              // of the release
	account   string              // the agent's own
	objects   map[[2]string]scope // by kind and name, of the kinds that the API knows
	ownKinds  []crd

	accounts []string // service accounts that the release brings
	users    []found  // pods that run as the agent's account
	refused  []string
}

// found is something refused, unless the release brings what it is about.
type found struct{ name, text string }

// err is one sentence about everything that is refused.
func (c *policyCheck) err() error {
	for _, u := range c.users {
		if !slices.Contains(c.accounts, u.name) {
			c.refused = append(c.refused, u.text)
		}
	}
	if more := len(c.refused) - maxRefusals; more > 0 {
		c.refused = append(c.refused[:maxRefusals], fmt.Sprintf("and %d more", more))
	}
	if len(c.refused) == 0 {
		return nil
	}
	return errors.New(strings.Join(c.refused, "; "))
}

// document checks the objects of one rendered document.
func (c *policyCheck) document(source, text string) {
	var doc map[string]any
	if yaml.Unmarshal([]byte(text), &doc) == nil {
		c.object(source, doc)
	}
}

func (c *policyCheck) object(source string, doc map[string]any) {
	if items, ok := doc["items"].([]any); ok {
		for _, item := range items {
			if object, ok := item.(map[string]any); ok {
				c.object(source, object)
			}
		}
		return
	}
	kind, _ := doc["kind"].(string)
	meta, _ := doc["metadata"].(map[string]any)
	name, _ := meta["name"].(string)
	if kind == "" {
		return
	}
	o := policyObject{policyCheck: c, where: fmt.Sprintf("%s: %s %q", source, kind, name)}
	where := c.scopeOf(doc, kind, name)
	switch {
	case !where.namespaced:
		o.ask(policy.ClusterObjects, "", "it belongs to no namespace")
	case where.namespace != c.namespace:
		o.ask(policy.OtherNamespaces, "metadata.namespace", fmt.Sprintf("it is in namespace %q", where.namespace))
	}
	switch kind {
	case "ServiceAccount":
		c.accounts = append(c.accounts, where.namespace+"/"+name)
	case "PersistentVolume":
		if spec, ok := doc["spec"].(map[string]any); ok {
			for _, volume := range []string{"hostPath", "local"} {
				if path := text(spec, volume, "path"); path != "" {
					o.path("spec."+volume, path, false)
				}
			}
		}
	}
	o.namespace = where.namespace
	o.walk("", doc)
}

// scopeOf says where an object lives. A kind that is not known yet is taken to live
// in namespaces, unless the chart that brings it says otherwise.
func (c *policyCheck) scopeOf(doc map[string]any, kind, name string) scope {
	if s, ok := c.objects[[2]string{kind, name}]; ok {
		return s
	}
	if slices.ContainsFunc(c.ownKinds, func(own crd) bool { return own.kind == kind && own.scope == "Cluster" }) || kind == "CustomResourceDefinition" {
		return scope{}
	}
	namespace := text(doc, "metadata", "namespace")
	if namespace == "" {
		namespace = c.namespace
	}
	return scope{true, namespace}
}

// policyObject is one object that is gone through.
type policyObject struct {
	*policyCheck
	where     string // template, kind and name
	namespace string
}

// refuse notes that field is refused, and why.
func (o *policyObject) refuse(field, why string) {
	text := o.where
	if field != "" {
		text += ", " + field
	}
	if text += ": " + why; !slices.Contains(o.refused, text) {
		o.refused = append(o.refused, text)
	}
}

// ask refuses what key decides, if it does.
func (o *policyObject) ask(key policy.Key, field, does string) {
	if o.rules.Refuses(key) {
		o.refuse(field, fmt.Sprintf("%s, which policy.%s refuses", does, key))
	}
}

// walk looks for pods wherever they are described: in workloads, in lists, in
// custom resources.
func (o *policyObject) walk(field string, value any) {
	switch v := value.(type) {
	case map[string]any:
		if _, ok := v["containers"].([]any); ok {
			o.pod(field, v)
			return
		}
		if annotations, ok := v["annotations"].(map[string]any); ok {
			for name, profile := range annotations {
				if strings.HasPrefix(name, "container.apparmor.security.beta.kubernetes.io/") && profile == "unconfined" {
					o.ask(policy.Unconfined, join(field, "annotations"), "a container runs without its AppArmor profile")
				}
			}
		}
		for key, item := range v {
			o.walk(join(field, key), item)
		}
	case []any:
		for i, item := range v {
			o.walk(fmt.Sprintf("%s[%d]", field, i), item)
		}
	}
}

// pod checks the description of a pod.
func (o *policyObject) pod(field string, pod map[string]any) {
	for _, key := range []string{"hostNetwork", "hostPID", "hostIPC"} {
		if pod[key] == true {
			o.ask(policy.HostNamespaces, join(field, key), "it shares a namespace with its node")
		}
	}
	o.security(join(field, "securityContext"), pod["securityContext"])
	for _, key := range []string{"serviceAccountName", "serviceAccount"} {
		if name := text(pod, key); name != "" && o.account == o.namespace+"/"+name {
			o.users = append(o.users, found{o.account, fmt.Sprintf("%s, %s: it runs as the agent's own service account %s, which no release may", o.where, join(field, key), name)})
			break
		}
	}
	readOnly := map[string]bool{} // volumes that no container can write to
	for _, kind := range []string{"containers", "initContainers", "ephemeralContainers"} {
		list, _ := pod[kind].([]any)
		for _, item := range list {
			if c, ok := item.(map[string]any); ok {
				o.container(fmt.Sprintf("%s[%s]", join(field, kind), text(c, "name")), c)
				mounts(readOnly, c)
			}
		}
	}
	volumes, _ := pod["volumes"].([]any)
	for _, item := range volumes {
		v, _ := item.(map[string]any)
		if path := text(v, "hostPath", "path"); path != "" {
			o.path(fmt.Sprintf("%s[%s].hostPath", join(field, "volumes"), text(v, "name")), path, readOnly[text(v, "name")])
		}
	}
}

// mounts notes of each volume that a container mounts whether all so far are
// read-only.
func mounts(readOnly map[string]bool, container map[string]any) {
	list, _ := container["volumeMounts"].([]any)
	for _, item := range list {
		m, _ := item.(map[string]any)
		name := text(m, "name")
		before, seen := readOnly[name]
		readOnly[name] = m["readOnly"] == true && (before || !seen)
	}
}

// defaultCapabilities are those that containers have anyway.
var defaultCapabilities = []string{
	"AUDIT_WRITE", "CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "KILL", "MKNOD",
	"NET_BIND_SERVICE", "SETFCAP", "SETGID", "SETPCAP", "SETUID", "SYS_CHROOT",
}

func (o *policyObject) container(field string, c map[string]any) {
	if s, ok := c["securityContext"].(map[string]any); ok {
		in := join(field, "securityContext")
		if s["privileged"] == true {
			o.ask(policy.Privileged, in+".privileged", "it has all rights on its node")
		}
		if capabilities, ok := s["capabilities"].(map[string]any); ok {
			list, _ := capabilities["add"].([]any)
			for _, name := range texts(list) {
				if !slices.Contains(defaultCapabilities, strings.TrimPrefix(strings.ToUpper(name), "CAP_")) {
					o.ask(policy.Capabilities, in+".capabilities.add", "it gets the capability "+name)
				}
			}
		}
		if proc := text(s, "procMount"); proc != "" && proc != "Default" {
			o.ask(policy.Unconfined, in+".procMount", "it sees all of /proc")
		}
		o.security(in, s)
	}
	ports, _ := c["ports"].([]any)
	for _, item := range ports {
		if p, ok := item.(map[string]any); ok && p["hostPort"] != nil && p["hostPort"] != float64(0) {
			o.ask(policy.HostNamespaces, field+".ports", fmt.Sprintf("it takes the port %v of its node", p["hostPort"]))
		}
	}
	if devices, ok := c["volumeDevices"].([]any); ok && len(devices) > 0 {
		o.ask(policy.Devices, field+".volumeDevices", "it gets a block device")
	}
	if resources, ok := c["resources"].(map[string]any); ok {
		limits, _ := resources["limits"].(map[string]any)
		for name := range limits {
			if strings.Contains(name, "/") && !strings.Contains(name, "kubernetes.io/") {
				o.ask(policy.Devices, field+".resources", "it gets the device "+name)
			}
		}
	}
}

// security checks what pods and containers have in common.
func (o *policyObject) security(field string, value any) {
	s, ok := value.(map[string]any)
	if !ok {
		return
	}
	for _, kind := range []string{"seccompProfile", "appArmorProfile"} {
		if text(s, kind, "type") == "Unconfined" {
			o.ask(policy.Unconfined, join(field, kind), "it runs without that profile")
		}
	}
	if options, ok := s["seLinuxOptions"].(map[string]any); ok && len(options) > 0 {
		o.ask(policy.Unconfined, join(field, "seLinuxOptions"), "it changes its SELinux label")
	}
	if windows, ok := s["windowsOptions"].(map[string]any); ok && windows["hostProcess"] == true {
		o.ask(policy.Privileged, join(field, "windowsOptions"), "it is a process of its node")
	}
	sysctls, _ := s["sysctls"].([]any)
	for _, item := range sysctls {
		entry, _ := item.(map[string]any)
		if name := text(entry, "name"); !slices.Contains(policy.SafeSysctls, name) {
			o.ask(policy.Sysctls, join(field, "sysctls"), "it sets the kernel parameter "+name)
		}
	}
}

// path checks a path of the node.
func (o *policyObject) path(field, path string, readOnly bool) {
	if why := o.rules.Mount(path, readOnly); why != "" {
		o.refuse(field, why)
	}
}

// text returns the text at keys, "" for none.
func text(value map[string]any, keys ...string) string {
	for _, key := range keys[:len(keys)-1] {
		value, _ = value[key].(map[string]any)
	}
	found, _ := value[keys[len(keys)-1]].(string)
	return found
}
