package helm

import (
	"strings"
	"testing"
)

// agent is a workload in which the agent itself runs, as part of what it deploys.
func agent(kind, strategy, version string) map[string]string {
	return map[string]string{"templates/agent.yaml": `apiVersion: apps/v1
kind: ` + kind + `
metadata: {name: agent}
spec:
  ` + strategy + `
  selector: {matchLabels: {app: agent}}
  template: {metadata: {labels: {app: agent}}, spec: {containers: [{name: main, image: example.test/agent:` + version + `}]}}
`}
}

// A release never has the agent wait for its own end. What it can wait for passes: pods
// that stay, new ones that come up beside, those of others.
func TestReleaseWithTheAgentInIt(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name, kind, strategy string
		change, refused      bool
	}{
		{"recreated", "Deployment", "strategy: {type: Recreate}", true, true},
		{"recreated, but unchanged", "Deployment", "strategy: {type: Recreate}", false, false},
		{"beside each other", "Deployment", "strategy: {type: RollingUpdate}", true, false},
		{"no room beside", "Deployment", "strategy: {type: RollingUpdate, rollingUpdate: {maxSurge: 0, maxUnavailable: 1}}", true, false},
		{"a set", "StatefulSet", "serviceName: agent", true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			b := newFixture(t)
			one := b.release("1.0.0", files("1.0.0", agent(c.kind, c.strategy, "1")), "")
			b.up(one, nil)
			version := "1"
			if c.change {
				version = "2"
			}
			job := b.job(b.release("2.0.0", files("2.0.0", agent(c.kind, c.strategy, version)), ""), one)
			job.Helm.OwnNamespace = b.ns
			job.Helm.OwnPod = b.kubectl("get", "pods", "--selector", "app=agent", "--output", "jsonpath={.items[0].metadata.name}")
			res := b.run(job)
			refused := strings.Contains(res.Error, `"agent": the agent that deploys the release runs in it`)
			if res.Succeeded == c.refused || refused != c.refused || res.Changed == c.refused {
				t.Errorf("result is %+v", res)
			}
			if !c.refused {
				return
			}
			job.Helm.OwnPod = b.kubectl("get", "pods", "--selector", "app=web", "--output", "jsonpath={.items[0].metadata.name}")
			if res := b.run(job); !res.Succeeded {
				t.Errorf("with another pod of its own, result is %+v", res)
			}
		})
	}
}
