package helm

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// The API is found as kubectl and helm find it: the configured file wins over the
// list in KUBECONFIG, whose files are merged and may be missing, and that over the
// file in the home directory.
func TestWhereTheAPIIsFound(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte("apiVersion: v1\nkind: Config\n"+text), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	whole := func(name, host string) string {
		return write(name, fmt.Sprintf("clusters: [{name: c, cluster: {server: %q}}]\nusers: [{name: u, user: {token: t}}]\n"+
			"contexts: [{name: x, context: {cluster: c, user: u}}]\ncurrent-context: x\n", host))
	}
	home := filepath.Join(dir, "home")
	whole("home/.kube/config", "https://home")
	explicit, one := whole("explicit", "https://explicit"), whole("one", "https://one")
	clusters := write("clusters", "clusters: [{name: c2, cluster: {server: https://merged}}]\n")
	contexts := write("contexts", "users: [{name: u2, user: {token: t}}]\ncontexts: [{name: x2, context: {cluster: c2, user: u2}}]\ncurrent-context: x2\n")
	broken := filepath.Join(dir, "broken")
	if err := os.WriteFile(broken, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	none := filepath.Join(dir, "none")
	t.Setenv("KUBERNETES_SERVICE_HOST", "")
	for _, c := range []struct {
		name, configured, context, list, home string
		want                                  string // the address, or what the error holds
	}{
		{name: "the configured file", configured: explicit, list: one, home: home, want: "https://explicit"},
		{name: "the variable", list: one, home: home, want: "https://one"},
		{name: "the first of several", list: one + ":" + clusters + ":" + contexts, home: home, want: "https://one"},
		{name: "a context of several", context: "x2", list: one + ":" + clusters + ":" + contexts, home: home, want: "https://merged"},
		{name: "several merged", list: ":" + none + ":" + contexts + "::" + clusters, home: home, want: "https://merged"},
		{name: "none of several", list: none + ":" + none + "2", home: home, want: "no file of the variable KUBECONFIG exists (" + none},
		{name: "a broken one", list: broken, home: home, want: "read kubeconfig " + broken},
		{name: "an empty variable", list: "", home: home, want: "https://home"},
		{name: "the home directory", home: home, want: "https://home"},
		{name: "nothing", home: none, want: "set kube.kubeconfig or KUBECONFIG"},
		{name: "no such file", configured: none, list: one, home: home, want: "check kube.kubeconfig"},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Setenv("KUBECONFIG", c.list)
			t.Setenv("HOME", c.home)
			config, err := restConfig(&protocol.Helm{Kubeconfig: c.configured, Context: c.context})
			got := ""
			if err != nil {
				got = err.Error()
			} else {
				got = config.Host
			}
			if !strings.Contains(got, c.want) || strings.HasPrefix(c.want, "https:") != (err == nil) {
				t.Errorf("found %q, want %q", got, c.want)
			}
		})
	}
}
