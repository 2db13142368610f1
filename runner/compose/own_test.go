package compose

import "testing"

// The own container's mounts say by which path the engine knows a path, the innermost
// mount first, and which cannot be mounted elsewhere.
func TestPathsOfTheOwnContainer(t *testing.T) {
	t.Parallel()
	o := &ownContainer{mounts: []ownMount{
		{destination: "/var/lib/wrktalk-agent/staging", why: "is in memory"},
		{destination: "/var/lib/wrktalk-agent", source: "/volumes/state/_data", volume: "state"},
		{destination: "/host", source: "/"},
		{destination: "/srv/app", source: "/srv/app"},
	}}
	for path, want := range map[string]string{
		"/var/lib/wrktalk-agent/compose": "/volumes/state/_data/compose",
		"/var/lib/wrktalk-agent":         "/volumes/state/_data",
		"/srv/app/x":                     "/srv/app/x",
		"/var/lib/wrktalk-agent/staging": "",
		"/var/lib/wrktalk-agents":        "",
		"/tmp/wrktalk":                   "",
	} {
		got, why := o.outside(path)
		if (why != "") != (want == "") || want != "" && got != want || want == "" && got != path {
			t.Errorf("%s lies at %q (%s), want %q", path, got, why, want)
		}
	}
	for path, want := range map[string]string{
		"/volumes/state/_data/compose/x": "/var/lib/wrktalk-agent/compose/x", "/srv/app": "/srv/app", "/etc": "/host/etc",
	} {
		if got := o.inside(path); got != want {
			t.Errorf("the host's %s is %q here, want %q", path, got, want)
		}
	}
	if got := o.ownPaths([]string{"/var/lib/wrktalk-agent", "/srv/app", "/etc/wrktalk-agent"}); len(got) != 1 || got[0] != "/volumes/state/_data" {
		t.Errorf("the host's paths that are the agent's: %q", got)
	}
	if !o.hasVolume("state") || o.hasVolume("") || o.hasVolume("other") {
		t.Error("which volumes are the agent's is not told right")
	}
	var none *ownContainer
	if got, why := none.outside("/x"); got != "/x" || why != "" || none.inside("/x") != "/x" || none.service("p") != "" || none.hasVolume("v") {
		t.Error("outside of a container a path is another one")
	}
}
