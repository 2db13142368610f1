package compose

import (
	"strings"
	"testing"
	"time"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

func TestImageRequirements(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		policies []string
		want     string
		refresh  time.Duration
	}{
		{[]string{"missing", "never"}, types.PullPolicyMissing, 0},
		{[]string{"", "build"}, types.PullPolicyMissing, 0},
		{[]string{"never", "missing"}, types.PullPolicyMissing, 0},
		{[]string{"always", "never"}, types.PullPolicyAlways, 0},
		{[]string{"daily", "missing"}, types.PullPolicyRefresh, 24 * time.Hour},
		{[]string{"weekly", "daily"}, types.PullPolicyRefresh, 24 * time.Hour},
		{[]string{"never", "never"}, types.PullPolicyNever, 0},
	} {
		p := &types.Project{Name: "x", Services: types.Services{}}
		for i, policy := range c.policies {
			name := string(rune('a' + i))
			p.Services[name] = types.ServiceConfig{Name: name, Image: "i", PullPolicy: policy}
		}
		list, err := imageRequirements(p)
		if err != nil || len(list) != 1 || list[0].policy != c.want || list[0].refresh != c.refresh {
			t.Errorf("%v: %+v, %v", c.policies, list, err)
		}
	}
}

// TestMovedTag: what is restored is the image that ran, also when the failed
// release has moved its tag.
func TestMovedTag(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	ref := strings.Replace(b.image, ":image", ":moving", 1)
	testenv.DockerOutput(t, "tag", b.image, ref)
	t.Cleanup(func() { testenv.DockerOutput(t, "image", "rm", "--force", ref) })
	text := strings.Replace(b.web("1.0", ""), b.image, ref, 1)
	one := b.release("1.0", map[string]string{"compose.yaml": text}, "")
	bad := b.release("2.0", map[string]string{"compose.yaml": text + "    command: [crash]\n"}, "")
	b.up(one, nil)
	id := testenv.DockerOutput(t, "inspect", "--format", "{{.Image}}", b.container("web"))
	other := testenv.AppImageWith(t, "other", 0)
	// As a pull of the release would.
	b.onEvent("bringing up release", func() { testenv.DockerOutput(t, "tag", other, ref) })
	res := b.run(b.job(bad, kept(one)))
	if !res.Restored {
		t.Errorf("not restored: %+v", res)
	}
	if got := testenv.DockerOutput(t, "inspect", "--format", "{{.Image}}", b.container("web")); got != id {
		t.Errorf("image %s was restored, not %s", got, id)
	}
}
