package compose

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// checked loads a release, as the preflight does, and returns what the policy says.
func checked(t *testing.T, rules policy.Rules, files map[string]string, env string) (log string, err error) {
	t.Helper()
	work := filepath.Join(t.TempDir(), "work")
	s, err := openStore(context.Background(), work)
	if err != nil {
		t.Fatal(err)
	}
	defer s.close()
	rel := protocol.Release{ArtifactID: "a", Version: "1", SHA256: "abc", PayloadDir: t.TempDir()}
	for name, text := range files {
		path := filepath.Join(rel.PayloadDir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	b := &backend{store: s, report: deploy.NewReport(&out, func(task.Event) {})}
	b.job = &protocol.Job{Release: rel, Settings: protocol.Settings{
		Compose: &protocol.Compose{Project: "app", WorkingDir: work}, Policy: rules,
	}}
	envFile := filepath.Join(t.TempDir(), "env")
	if err := os.WriteFile(envFile, []byte(env), 0o600); err != nil {
		t.Fatal(err)
	}
	if b.env, err = readEnv(envFile); err != nil {
		t.Fatal(err)
	}
	p, err := b.prepare(context.Background(), rel, b.env, nil)
	if err == nil {
		err = b.checkPolicy(p)
	}
	return out.String(), err
}

func webWith(more string) string {
	return "services:\n  web:\n    image: x\n    " + strings.ReplaceAll(more, "\n", "\n    ") + "\n"
}

// TestPolicy asks for one thing after the other: the default preset allows it, the
// restricted one names it with its place, and allows it when its key does.
func TestPolicy(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	if err := os.WriteFile(filepath.Join(host, "file"), []byte("A=1\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	restricted := policy.New(policy.PresetRestricted, [len(policy.Keys)]policy.Choice{}, "")
	for _, c := range []struct {
		name  string
		files map[string]string
		key   policy.Key
		want  []string
	}{
		{"privileged", map[string]string{"compose.yaml": webWith("privileged: true")}, policy.Privileged, []string{strings.TrimSpace(testenv.Doc(t, "docs/security.md", "What a writer to the database may do", 1, "yaml:7", "yaml:4"))}},
		{"hook", map[string]string{"compose.yaml": webWith("post_start: [{command: x, privileged: true}]")}, policy.Privileged, []string{"compose.yaml:4", "post_start"}},
		{"by variable", map[string]string{"compose.yaml": webWith("privileged: ${P}")}, policy.Privileged, []string{"compose.yaml:4"}},
		{"network", map[string]string{"compose.yaml": webWith("network_mode: host")}, policy.HostNamespaces, []string{"compose.yaml:4", "network_mode"}},
		{"pid", map[string]string{"compose.yaml": webWith("pid: host")}, policy.HostNamespaces, []string{"pid"}},
		{"ipc", map[string]string{"compose.yaml": webWith("ipc: host")}, policy.HostNamespaces, []string{"ipc"}},
		{"uts", map[string]string{"compose.yaml": webWith("uts: host")}, policy.HostNamespaces, []string{"uts"}},
		{"userns", map[string]string{"compose.yaml": webWith("userns_mode: host")}, policy.HostNamespaces, []string{"userns_mode"}},
		{"cgroup", map[string]string{"compose.yaml": webWith("cgroup: host")}, policy.HostNamespaces, []string{"cgroup"}},
		{"host network by name", map[string]string{"compose.yaml": webWith("networks: [n]") + "networks: {n: {external: true, name: host}}\n"}, policy.HostNamespaces, []string{`network "n"`, "compose.yaml:5"}},
		{"capability", map[string]string{"compose.yaml": webWith("cap_add:\n  - CHOWN\n  - NET_ADMIN")}, policy.Capabilities, []string{"compose.yaml:6", "NET_ADMIN"}},
		{"device", map[string]string{"compose.yaml": webWith("devices:\n  - /dev/kvm:/dev/kvm")}, policy.Devices, []string{"compose.yaml:5", "/dev/kvm"}},
		{"gpu", map[string]string{"compose.yaml": webWith("deploy: {resources: {reservations: {devices: [{capabilities: [gpu]}]}}}")}, policy.Devices, []string{"compose.yaml:4", "deploy"}},
		{"seccomp", map[string]string{"compose.yaml": webWith("security_opt:\n  - no-new-privileges:true\n  - seccomp:unconfined")}, policy.Unconfined, []string{"compose.yaml:6", "seccomp"}},
		{"apparmor", map[string]string{"compose.yaml": webWith("security_opt: ['apparmor=unconfined']")}, policy.Unconfined, []string{"apparmor"}},
		{"own profile", map[string]string{"compose.yaml": webWith("security_opt: ['seccomp:./p.json']"), "p.json": "{}"}, policy.Unconfined, []string{"profile of its own"}},
		{"label", map[string]string{"compose.yaml": webWith("security_opt: ['label:disable']")}, policy.Unconfined, []string{"SELinux"}},
		{"sysctl", map[string]string{"compose.yaml": webWith("sysctls: {net.ipv4.ip_unprivileged_port_start: 0, net.core.somaxconn: 1024}")}, policy.Sysctls, []string{"net.core.somaxconn"}},
		{"mount", map[string]string{"compose.yaml": webWith("volumes:\n  - ./data:/data\n  - " + host + ":/host:ro")}, policy.HostPaths, []string{"compose.yaml:6", "volumes", host}},
		{"long mount", map[string]string{"compose.yaml": webWith("volumes:\n  - type: bind\n    source: " + host + "\n    target: /host")}, policy.HostPaths, []string{"compose.yaml:7", host}},
		{"mount by volume", map[string]string{"compose.yaml": webWith("volumes: ['vol:/v']") + "volumes: {vol: {driver_opts: {type: none, o: bind, device: " + host + "}}}\n"}, policy.HostPaths, []string{`volume "vol"`, "driver_opts", host}},
		{"overlay", map[string]string{"compose.yaml": webWith("volumes: ['vol:/v']") + "volumes: {vol: {driver_opts: {type: overlay, device: overlay, o: 'lowerdir=" + host + ",upperdir=/u,workdir=/w'}}}\n"}, policy.HostPaths, []string{host}},
		{"nfs", map[string]string{"compose.yaml": webWith("volumes: ['vol:/v']") + "volumes: {vol: {driver_opts: {type: nfs, o: 'addr=10.0.0.1', device: ':/x'}}}\n"}, policy.HostPaths, []string{":/x"}},
		{"driver", map[string]string{"compose.yaml": webWith("volumes: ['vol:/v']") + "volumes: {vol: {driver: rexray}}\n"}, policy.HostPaths, []string{"rexray"}},
		{"secret", map[string]string{"compose.yaml": webWith("secrets: [s]") + "secrets:\n  s:\n    file: " + host + "/file\n"}, policy.HostPaths, []string{"compose.yaml:7", `secret "s", file`, host}},
		{"config", map[string]string{"compose.yaml": webWith("configs: [s]") + "configs: {s: {file: " + host + "/file}}\n"}, policy.HostPaths, []string{`config "s"`}},
		{"env file", map[string]string{"compose.yaml": webWith("env_file:\n  - " + host + "/file")}, policy.HostPaths, []string{"compose.yaml:5: services.web.env_file", host}},
		{"label file", map[string]string{"compose.yaml": webWith("label_file: " + host + "/file")}, policy.HostPaths, []string{"compose.yaml:4: services.web.label_file"}},
		{"build", map[string]string{"compose.yaml": webWith("build: {context: ., network: host}"), "Dockerfile": "FROM scratch\n"}, policy.HostNamespaces, []string{"compose.yaml:4", "build"}},
		{"socket", map[string]string{"compose.yaml": webWith("volumes: ['/var/run/docker.sock:/var/run/docker.sock:ro']")}, policy.EngineSocket, []string{"compose.yaml:4", "socket"}},
		{"api socket", map[string]string{"compose.yaml": webWith("use_api_socket: true")}, policy.EngineSocket, []string{"use_api_socket"}},
		{"volumes from", map[string]string{"compose.yaml": webWith("volumes_from: ['container:other']")}, policy.OtherContainers, []string{"compose.yaml:4", "volumes_from", "other"}},
		{"other's network", map[string]string{"compose.yaml": webWith("network_mode: container:other")}, policy.OtherContainers, []string{"other"}},
		{"external volume", map[string]string{"compose.yaml": webWith("volumes: ['vol:/v']") + "volumes:\n  vol:\n    external: true\n"}, policy.OtherContainers, []string{"compose.yaml:7", `volume "vol"`}},
		{"named volume", map[string]string{"compose.yaml": webWith("volumes: ['vol:/v']") + "volumes: {vol: {name: other_db}}\n"}, policy.OtherContainers, []string{"other_db"}},
		{"in an extended service", map[string]string{
			"compose.yaml":   "services:\n  web:\n    image: x\n    extends: {file: base/base.yaml, service: base}\n",
			"base/base.yaml": "services:\n  base:\n    privileged: true\n",
		}, policy.Privileged, []string{"base/base.yaml:3", `service "web"`}},
		{"in an included file", map[string]string{
			"compose.yaml": "include: [part.yaml]\n" + webWith("hostname: x"), "part.yaml": "services:\n  job:\n    image: x\n    pid: host\n",
		}, policy.HostNamespaces, []string{"part.yaml:4", `service "job"`}},
		{"by a merge key", map[string]string{"compose.yaml": "x-all: &all\n  privileged: true\nservices:\n  web:\n    image: x\n    <<: *all\n"}, policy.Privileged, []string{"compose.yaml:2"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			if _, err := checked(t, policy.Rules{}, c.files, "P=true\n"); err != nil {
				t.Errorf("by default: %v", err)
			}
			_, err := checked(t, restricted, c.files, "P=true\n")
			for _, want := range append(c.want, "policy."+string(c.key)+" refuses") {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("restricted: %v, want %q", err, want)
				}
			}
			others := restricted
			others.Refused = slices.DeleteFunc(slices.Clone(others.Refused), func(k policy.Key) bool { return k == c.key })
			if _, err := checked(t, others, c.files, "P=true\n"); err != nil {
				t.Errorf("with its key on allow: %v", err)
			}
		})
	}
}

// TestPolicyOfPaths is about what no release gets, and what every release may have.
func TestPolicyOfPaths(t *testing.T) {
	t.Parallel()
	host := t.TempDir()
	own := filepath.Join(host, "agent")
	for _, dir := range []string{own, filepath.Join(host, "app")} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("../agent", filepath.Join(host, "app", "link")); err != nil {
		t.Fatal(err)
	}
	rules := policy.Rules{Own: []string{own}}
	for _, c := range []struct {
		name, file string
		rules      policy.Rules
		refusal    string
		log        string
	}{
		{"own directory", webWith("volumes: ['" + own + ":/x:ro']"), rules, "the agent's own", ""},
		{"by a link", webWith("volumes: ['" + host + "/app/link:/x:ro']"), rules, "the agent's own", ""},
		{"by ..", webWith("volumes: ['" + host + "/app/../agent/x:/x:ro']"), rules, "the agent's own", ""},
		{"by a volume", webWith("volumes: ['vol:/v']") + "volumes: {vol: {driver_opts: {type: none, o: 'bind,ro', device: " + own + "}}}\n", rules, "the agent's own", ""},
		{"as env file", webWith("env_file: " + own + "/config.toml"), rules, "the agent's own", ""},
		{"as secret", webWith("secrets: [s]") + "secrets: {s: {file: " + own + "}}\n", rules, "the agent's own", ""},
		{"holds it", webWith("volumes: ['" + host + ":/x']"), rules, "could be written to", ""},
		{"holds it, read-only", webWith("volumes: ['" + host + ":/x:ro']"), rules, "", "holds the agent's own " + own},
		{"shadow", webWith("secrets: [s]") + "secrets: {s: {file: /etc/shadow}}\n", rules, "a secret of the host itself", ""},
		{"shadow as env file", webWith("env_file: /etc/shadow"), rules, "a secret of the host itself", ""},
		{"allowed shadow", webWith("secrets: [s]") + "secrets: {s: {file: /etc/shadow}}\n", policy.Rules{AllowedPaths: []string{"/etc/shadow"}}, "", ""},
		{"allowed path", webWith("volumes: ['" + host + "/app:/x']"), policy.Rules{Refused: []policy.Key{policy.HostPaths}, AllowedPaths: []string{host}}, "", ""},
		{"history", webWith("volumes: ['../../history.json:/x:ro']"), rules, "keeps for itself", ""},
		{"beside the releases", webWith("volumes: ['../data:/x']"), policy.Rules{Own: []string{os.TempDir()}, Parents: policy.ParentsAllow}, "", ""},
		{"beside the releases, restricted", webWith("volumes: ['../data:/x']"), policy.Rules{Refused: []policy.Key{policy.HostPaths}}, "policy.host_paths refuses", ""},
		{"what is laid out", webWith("volumes: ['../../laid:/x:ro']"), rules, "keeps for itself", ""},
		{"the working directory", webWith("volumes: ['../../:/x:ro']"), rules, "keeps for itself", ""},
		{"own file", webWith("volumes: ['./data:/x', '.:/y']"), policy.Rules{Refused: []policy.Key{policy.HostPaths}}, "", ""},
		{"several", webWith("privileged: true\npid: host"), policy.New(policy.PresetRestricted, [len(policy.Keys)]policy.Choice{}, ""), `pid: it shares a namespace with this host, which policy.host_namespaces refuses; compose.yaml:4: service "web", privileged`, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			log, err := checked(t, c.rules, map[string]string{"compose.yaml": c.file}, "")
			if (err == nil) != (c.refusal == "") || err != nil && !strings.Contains(err.Error(), c.refusal) {
				t.Errorf("%v, want %q", err, c.refusal)
			}
			if !strings.Contains(log, c.log) || c.log == "" && strings.Contains(log, "holds the agent's own") {
				t.Errorf("the log says %q, want %q", log, c.log)
			}
		})
	}
}

// TestRestoreIsNotAskedAgain brings back a release that a later policy refuses.
func TestRestoreIsNotAskedAgain(t *testing.T) {
	t.Parallel()
	var out strings.Builder
	b := &backend{report: deploy.NewReport(&out, func(task.Event) {}), job: &protocol.Job{Release: protocol.Release{ArtifactID: "new"}}}
	b.job.Policy.Refused = []policy.Key{policy.HostPaths}
	var err error
	b.job.Compose = &protocol.Compose{WorkingDir: t.TempDir()}
	if b.store, err = openStore(context.Background(), b.job.Compose.WorkingDir); err != nil {
		t.Fatal(err)
	}
	defer b.store.close()
	if why := b.hostFiles(protocol.Release{ArtifactID: "former", Version: "1.0"})("/srv/x"); why != "" || !strings.Contains(out.String(), "release 1.0 served before") {
		t.Errorf("%q, %s", why, out.String())
	}
	if why := b.hostFiles(b.job.Release)("/srv/x"); why == "" {
		t.Error("the new release may read it")
	}
}

// TestBounds: what makes the loader work for minutes is refused at once.
func TestBounds(t *testing.T) {
	t.Parallel()
	deep := func(n int) string { return strings.Repeat("{a: ", n) + "1" + strings.Repeat("}", n) }
	fan := map[string]string{"compose.yaml": "include: [0.yaml, ./0.yaml]\n" + webWith("hostname: x")}
	for i := range 20 {
		fan[fmt.Sprintf("%d.yaml", i)] = fmt.Sprintf("include: [%d.yaml, ./%d.yaml]\n", i+1, i+1)
	}
	for _, c := range []struct {
		name  string
		files map[string]string
		want  string
	}{
		{"deep", map[string]string{"compose.yaml": webWith("hostname: x") + "x-a: " + deep(9000) + "\n"}, "nest deeper than"},
		{"deep lists", map[string]string{"compose.yaml": webWith("hostname: x") + "x-a: " + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + "\n"}, "nest deeper than"},
		{"deep through an alias", map[string]string{"compose.yaml": webWith("hostname: x") + "x-a: &a " + deep(60) + "\nx-b: " + strings.Repeat("{a: ", 60) + "*a" + strings.Repeat("}", 60) + "\n"}, "nest deeper than"},
		{"includes", fan, "include each other more than"},
		{"deep enough", map[string]string{"compose.yaml": webWith("hostname: x") + "x-a: " + deep(90) + "\n"}, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := checked(t, policy.Rules{}, c.files, "")
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%v, want %q", err, c.want)
			}
		})
	}
}
