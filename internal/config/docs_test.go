package config

import (
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

const (
	exampleFile   = "../../config.example.toml"
	referenceFile = "../../docs/configuration.md"
)

var update = flag.Bool("update", false, "rewrite the tables of docs/configuration.md")

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// As it stands, the example changes nothing.
func TestExampleAsItStands(t *testing.T) {
	src := source(t, []string{docker})
	src.File = exampleFile
	c := mustLoad(t, src)
	for i, k := range keys {
		if k.name != "agent.deployment_type" && c.entries[i].source != sourceDefault {
			t.Errorf("%s is set: %s", k.name, c.entries[i].source)
		}
	}
}

// With every # taken away, it holds every key, each at its default.
func TestExampleHoldsEveryDefault(t *testing.T) {
	commented := regexp.MustCompile(`(?m)^#([a-z_]+ = )`)
	src := source(t, nil)
	src.File = write(t, "example.toml", commented.ReplaceAllString(read(t, exampleFile), "$1"))
	c := mustLoad(t, src)
	if w := c.Warnings(); len(w) > 0 {
		t.Errorf("warnings: %q", w)
	}
	defaults := mustLoad(t, source(t, []string{docker}))
	for i, k := range keys {
		e := c.entries[i]
		if !strings.HasPrefix(e.source, "file ") {
			t.Errorf("%s is missing", k.name)
		} else if got := e.text.Reveal(); got != k.def && k.name != "agent.deployment_type" {
			t.Errorf("%s = %q, the default is %q", k.name, got, k.def)
		}
		if got, want := k.get(c), k.get(defaults); got != want {
			t.Errorf("%s comes out as %q, by default as %q", k.name, got, want)
		}
	}
}

// A default is written as the agent itself would show it.
func TestDefaultsAreCanonical(t *testing.T) {
	for _, k := range keys {
		if k.def == "" || k.name == "agent.heartbeat_interval" { // 60s, as in the reference
			continue
		}
		var c Config
		if err := k.set(&c, k.def); err != nil {
			t.Errorf("%s: default %q: %v", k.name, k.def, err)
		} else if got := k.get(&c); got != k.def {
			t.Errorf("%s: default %q shows as %q", k.name, k.def, got)
		}
		if k.doc == "" || strings.HasSuffix(k.doc, ".") || strings.ContainsAny(k.doc, "|\n") {
			t.Errorf("%s: bad doc %q", k.name, k.doc)
		}
	}
}

// referenceTable returns the table of one section as docs/configuration.md
// shows it.
func referenceTable(section string) string {
	var b strings.Builder
	b.WriteString("| key | variable | default | value | meaning |\n|---|---|---|---|---|\n")
	for _, k := range keys {
		if k.section() != section {
			continue
		}
		def := ""
		if k.def != "" {
			def = "`" + k.def + "`"
		}
		variable := "`" + k.vars()[0] + "`"
		if k.fileVar() != "" {
			variable += ", `" + k.fileVar() + "`"
		}
		accepted := string(k.kind)
		if len(k.values) > 0 {
			accepted = strings.Join(k.values, ", ")
		}
		fmt.Fprintf(&b, "| `%s` | %s | %s | %s | %s |\n", k.name, variable, def, accepted, k.doc)
	}
	return b.String()
}

// The reference's tables are what the table of keys says. After a change, run
//
//	go test ./internal/config -run TestReference -update
func TestReference(t *testing.T) {
	text := read(t, referenceFile)
	blocks := regexp.MustCompile(`(?s)(<!-- keys: ([a-z]+) -->\n).*?(<!-- end -->\n)`)
	var found []string
	want := blocks.ReplaceAllStringFunc(text, func(block string) string {
		m := blocks.FindStringSubmatch(block)
		found = append(found, m[2])
		return m[1] + referenceTable(m[2]) + m[3]
	})
	if !slices.Equal(found, sections()) {
		t.Errorf("%s has the sections %q, want %q", referenceFile, found, sections())
	}
	if want == text {
		return
	}
	if *update {
		if err := os.WriteFile(referenceFile, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	got := strings.Split(text, "\n")
	for line := range strings.SplitSeq(want, "\n") {
		if !slices.Contains(got, line) {
			t.Errorf("missing: %s", line)
		}
	}
	t.Errorf("%s differs from the table of keys: run this test with -update", referenceFile)
}

// The parts of a configuration that the pages show are accepted as they stand.
func TestPagesShowWhatIsAccepted(t *testing.T) {
	for _, c := range []struct{ text, key, want string }{
		{testenv.Doc(t, "docs/maintenance.md", "nginx", 1), "maintenance.probe_url", "https://127.0.0.1/"},
		{testenv.Doc(t, "docs/maintenance.md", "HAProxy", 1), "maintenance.haproxy_state_file", "/run/haproxy/wrktalk-server-state"},
		{testenv.Doc(t, "docs/maintenance.md", "Commands", 0), "maintenance.leave_command", "/usr/local/sbin/page off"},
		{testenv.Doc(t, "docs/security.md", "What a writer to the database may do", 0), "policy.preset", "restricted"},
	} {
		src := source(t, []string{docker})
		src.File = write(t, "config.toml", c.text)
		config := mustLoad(t, src)
		if got := setting(t, config, c.key).Value; got != c.want {
			t.Errorf("%s comes out as %q of\n%s", c.key, got, c.text)
		}
		if w := config.Warnings(); len(w) > 0 {
			t.Errorf("warnings: %q", w)
		}
	}
}
