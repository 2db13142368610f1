package helm

import (
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"helm.sh/helm/v3/pkg/chartutil"
)

// TestHostileCharts runs what an attacker could put into a chart. Each ends in
// one sentence, before anything was changed, and without a death of this
// process.
func TestHostileCharts(t *testing.T) {
	t.Parallel()
	noise := func(n int) string { // does not compress
		raw := make([]byte, n)
		r := rand.NewChaCha8([32]byte{7})
		_, _ = r.Read(raw)
		return base64.StdEncoding.EncodeToString(raw)
	}
	template := func(text string) map[string]string { return map[string]string{"templates/x.yaml": text} }
	// Few bytes that become just more than is allowed, in parts that take little
	// memory while they are read.
	bomb := map[string]string{"templates/_x.tpl": `{{ define "x" }}{{ $s := "x" }}{{ range until 20 }}{{ $s = printf "%s%s" $s $s }}{{ end }}{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"a"},"data":{"a":"{{ $s }}"}}{{ end }}`}
	for i := range 32 {
		bomb[fmt.Sprintf("templates/%d.yaml", i)] = `{{ include "x" . }}`
	}
	for name, c := range map[string]struct {
		files  map[string]string
		values string
		want   string
	}{
		"recursion":          {template(`{{ define "a" }}{{ include "a" . }}{{ end }}{{ include "a" . }}`), "", "nested reference name: a"},
		"template recursion": {template(`{{ define "a" }}{{ template "a" . }}{{ end }}{{ template "a" . }}`), "", "exceeded maximum template depth"},
		"tpl recursion":      {template(`{{ tpl .Values.bomb . }}`), "bomb: '{{ tpl .Values.bomb . }}'\n", "the helm process died: the chart "},
		"memory":             {template(`{{ $s := "x" }}{{ range until 40 }}{{ $s = printf "%s%s" $s $s }}{{ end }}{{ len $s }}`), "", "the helm process died: the chart took more than 1024 MiB of memory"},
		"endless":            {template(`{{ range $i := until 100000 }}{{ range until 100000 }}{{ end }}{{ end }}`), "", "the preparations were not done after " + enough().String()},
		"template panic":     {template(`{{ index (list 1 2) 99 }}`), "", "index out of range"},
		"fail":               {template(`{{ fail "this chart needs a license" }}`), "", "this chart needs a license"},
		"file schema":        {map[string]string{"values.schema.json": `{"properties":{"a":{"$ref":"file:///etc/hostname"}}}`}, "a: b\n", "file:///etc/hostname, outside of the chart"},
		"device schema":      {map[string]string{"values.schema.json": `{"$ref":"file:///dev/zero"}`}, "", "file:///dev/zero, outside of the chart"},
		"schema":             {map[string]string{"values.schema.json": `{"properties":{"replicas":{"type":"integer","maximum":3}}}`}, "replicas: 7\n", "maximum"},
		"subchart schema": {map[string]string{
			"charts/db/Chart.yaml": "apiVersion: v2\nname: db\nversion: 1.0.0\n", "charts/db/values.schema.json": `{"$ref":"file:///etc/passwd"}`,
		}, "", "the values schema of chart db cannot be used"},
		"kubernetes version": {map[string]string{"Chart.yaml": "apiVersion: v2\nname: app\nversion: 1.0.0\nkubeVersion: '>=99'\n"}, "", "chart app requires kubernetes >=99, the cluster has v"},
		"too large":          {map[string]string{"files/noise.txt": noise(1 << 20)}, "", "the release is too large for Helm: its record would take"},
		"too many values":    {nil, "noise: " + noise(1<<20) + "\n", "the row's values ("},
		"bomb":               {bomb, "", "more than the 33554432 allowed"},
		"unknown kind":       {template("apiVersion: example.test/v1\nkind: Thing\nmetadata: {name: x}\n"), "", "template app/templates/x.yaml: "},
		"not YAML":           {template("{ a: b"), "", "read the rendered chart"},
		"no kind":            {template("a: b\n"), "", "template app/templates/x.yaml: "},
		"wrong field":        {template("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: x, labels: 7}\n"), "", "x.yaml"},
		"DNS":                {template(`{{ if getHostByName "localhost" }}{{ fail "resolved" }}{{ end }}{{ fail "not resolved" }}`), "", "not resolved"},
		"environment":        {template(`{{ env "PATH" }}`), "", `function "env" not defined`},
		"dependency":         {map[string]string{"Chart.yaml": "apiVersion: v2\nname: app\nversion: 1.0.0\ndependencies: [{name: x, version: 1.0.0, repository: 'http://127.0.0.1:1'}]\n"}, "", "nothing is downloaded here"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			job := b.job(b.release("1.0.0", files("1.0.0", c.files), c.values), nil)
			if name == "endless" {
				job.Timeout = enough()
			}
			if name == "bomb" && raceDetector {
				// Its process would meet the bound of its memory first.
				if err := b.render(job.Release.PayloadDir); err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("rendered: %v", err)
				}
				return
			}
			if died := "the helm process died: "; raceDetector && strings.HasPrefix(c.want, died) {
				c.want = died // the race detector takes several times the memory
			}
			b.refusedWith(b.run(job), c.want)
			b.nothing()
			if len(b.log) > 64<<10 {
				t.Errorf("the log has %d bytes", len(b.log))
			}
		})
	}
}

// render renders a chart in this process.
func (b *fixture) render(payload string) error {
	b.t.Helper()
	ch, err := loadChart(payload)
	if err != nil {
		b.t.Fatal(err)
	}
	_, err = b.records().render(ch, map[string]any{}, chartutil.ReleaseOptions{Name: releaseName, Namespace: b.ns, Revision: 1, IsInstall: true})
	return err
}

// TestLookupSeesWhatTheAgentMay documents that lookup works, with the agent's permissions.
func TestLookupSeesWhatTheAgentMay(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	more := map[string]string{"templates/found.yaml": `apiVersion: v1
kind: ConfigMap
metadata: {name: found}
data: {namespace: {{ (lookup "v1" "Namespace" "" .Release.Namespace).metadata.name | quote }}}
`}
	b.up(b.release("1.0.0", files("1.0.0", more), ""), nil)
	if got := b.kubectl("get", "configmap", "found", "--output", "jsonpath={.data.namespace}"); got != b.ns {
		t.Errorf("found %q", got)
	}
}

func TestOwnedBySomebodyElse(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	if err := b.k.Apply(b.ns, `{"apiVersion":"v1","kind":"ConfigMap","metadata":{"name":"config"},"data":{"mine":"yes"}}`); err != nil {
		t.Fatal(err)
	}
	b.refusedWith(b.run(b.job(b.release("1.0.0", files("1.0.0", nil), ""), nil)), `configmap "config" exists and belongs to no Helm release`)
	if got := b.kubectl("get", "configmap", "config", "--output", "jsonpath={.data.mine}"); got != "yes" {
		t.Errorf("%q", got)
	}
	b.kubectl("delete", "configmap", "config")
	b.helm("install", "other", b.release("1.0.0", files("1.0.0", nil), "").PayloadDir)
	b.refusedWith(b.run(b.job(b.release("1.0.0", files("1.0.0", nil), ""), nil)), "exists and belongs to release "+b.ns+"/other")
}

func TestUnreachable(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	rel := b.release("1.0.0", files("1.0.0", nil), "")
	for name, c := range map[string]struct{ kubeconfig, context, want string }{
		"no file":    {t.TempDir() + "/none", "", "check kube.kubeconfig"},
		"no context": {b.kubeconfig, "other", "other"},
		"nobody":     {nobody(t, b), "", "does not answer"},
	} {
		b.approvals = 0
		job := b.job(rel, nil)
		job.Helm.Kubeconfig, job.Helm.Context = c.kubeconfig, c.context
		res := b.run(job)
		failsWith(t, res, c.want)
		if res.Changed || strings.Contains(res.Error, "\n") {
			t.Errorf("%s: %+v", name, res)
		}
	}
}

// nobody returns a kubeconfig for a port where nobody listens.
func nobody(t *testing.T, b *fixture) string {
	t.Helper()
	path := t.TempDir() + "/kubeconfig"
	if err := b.k.Kubeconfig(path, "127.0.0.1:1"); err != nil {
		t.Fatal(err)
	}
	return path
}
