package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// TestNewContents: other contents of a config or secret are applied, also
// where the service itself is the same in both releases.
func TestNewContents(t *testing.T) {
	t.Parallel()
	const configs = `    configs: [{source: c, target: /c}]
    secrets: [s]
  other:
    image: %IMAGE%
    stop_grace_period: 1s
    configs: [{source: same, target: /same}]
configs: {c: {%CONFIG%}, same: {file: ./same}}
secrets: {s: {%SECRET%}}
`
	for _, c := range []struct{ name, config, config2, secret, secret2, env, env2, wantC, wantS string }{
		{"files", "file: ./c", "file: ./c", "file: ./s", "file: ./s", "", "", "c of 2", "s of 2"},
		{"text and env", "content: one", "content: two", "environment: PIN", "environment: PIN", "PIN=1234", "PIN=1235", "two", "1235"},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newFixture(t)
			release := func(version, config, secret, env string) *protocol.Release {
				more := strings.NewReplacer("%IMAGE%", b.image, "%CONFIG%", config, "%SECRET%", secret).Replace(configs)
				return b.release(version, map[string]string{
					"compose.yaml": b.web("x", more), "same": "same", "c": "c of " + version, "s": "s of " + version,
				}, env)
			}
			one, two := release("1", c.config, c.secret, c.env), release("2", c.config2, c.secret2, c.env2)
			b.up(one, nil)
			oldC, oldS := b.ask("web", "/file?path=/c"), b.ask("web", "/file?path=/run/secrets/s")
			web, other := b.container("web"), b.container("other")
			b.up(two, kept(one))
			if got := b.ask("web", "/file?path=/c"); got != c.wantC {
				t.Errorf("the config reads %q, want %q", got, c.wantC)
			}
			if got := b.ask("web", "/file?path=/run/secrets/s"); got != c.wantS {
				t.Errorf("the secret reads %q, want %q", got, c.wantS)
			}
			if b.container("other") != other {
				t.Error("a service with the same contents was recreated")
			}
			if b.container("web") == web {
				t.Error("web was not recreated")
			}
			web = b.container("web")
			again := b.job(two, two)
			again.TaskID = "another task"
			if res := b.run(again); !res.Succeeded || b.container("web") != web {
				t.Errorf("the same release again recreated web: %+v", res)
			}
			// Back again, as a failed release would go.
			bad := release("3", c.config2, c.secret2, c.env2)
			if err := os.WriteFile(filepath.Join(bad.PayloadDir, "compose.yaml"), []byte(b.web("x", "    command: [crash]\n")), 0o644); err != nil {
				t.Fatal(err)
			}
			if res := b.run(b.job(bad, kept(one))); !res.Restored {
				t.Fatalf("%+v", res)
			}
			if c, s := b.ask("web", "/file?path=/c"), b.ask("web", "/file?path=/run/secrets/s"); c != oldC || s != oldS {
				t.Errorf("restored: %q and %q, want %q and %q", c, s, oldC, oldS)
			}
		})
	}
}

// TestContentsKey: the digests in labels of two hosts tell nobody that their
// secrets are the same, and those of one host only say that they did not change.
func TestContentsKey(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	rel := b.release("1", map[string]string{"compose.yaml": b.web("x", "    secrets: [s]\nsecrets: {s: {environment: PIN}}\n")}, "PIN=1234")
	label := func() string {
		return testenv.DockerOutput(t, "inspect", "--format", `{{index .Config.Labels "`+contentsLabel+`"}}`, b.container("web"))
	}
	b.up(rel, nil)
	first := label()
	info, err := os.Stat(filepath.Join(b.workdir, keyFile))
	if err != nil || info.Mode() != 0o600 || info.Size() != keySize || first == "" {
		t.Fatalf("label %q, key %v, %v", first, info, err)
	}
	if err := os.Remove(filepath.Join(b.workdir, keyFile)); err != nil {
		t.Fatal(err)
	}
	b.up(rel, nil)
	if label() == first {
		t.Error("the digest does not depend on the key")
	}
}
