package packages

import (
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

// rpmFile is the package for this machine, whatever rpm calls its architecture.
func rpmFile(version string) string { return "/files/wrktalk-agent-" + version + "-1.*.rpm" }

// The rpm's scripts do what the deb's do. Dependencies are Debian's here, of which rpm knows
// nothing.
func TestRPM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rpm := "rpm --force-debian --nodeps "

	// It unpacks the package where it runs, as root over whatever is there.
	config, err := os.ReadFile("../../packaging/rpmlint.toml")
	if err != nil {
		t.Fatal(err)
	}
	w.Write("/tmp/rpmlint.toml", string(config))
	if said, err := w.Try("rpmlint --strict --config /tmp/rpmlint.toml " + rpmFile(older)); err != nil {
		t.Errorf("rpmlint finds what packaging/rpmlint.toml does not explain:\n%s", said)
	}
	w.Run("rm -rf /etc/wrktalk-agent") // which it left behind
	// As `dnf install`, which Debian's host has no repositories for.
	install := strings.Split(testenv.Doc(t, "docs/installation.md", "Installation from packages", 0,
		"dnf install", rpm+"-i", "1.2.3-1.x86_64", older+"-1.*"), "\n")[1]
	if said := w.Run("cd /files && " + install); !strings.Contains(said, "does not run yet") {
		t.Errorf("the installation says: %s", said)
	}
	if state := w.property(unit, "ActiveState") + " " + w.property(unit, "UnitFileState"); state != "inactive disabled" {
		t.Errorf("after the installation the unit is %s", state)
	}
	if got := w.Run("stat -c '%a %U' /var/lib/wrktalk-agent"); got != "700 wrktalk-agent" {
		t.Errorf("the state directory is %s", got)
	}
	w.configure()
	w.Run("systemctl enable --now wrktalk-agent")

	former := w.pid(unit)
	w.Run(rpm + "-U " + rpmFile(newer))
	w.awaitActive(unit, former)
	w.Run("grep -q '^deployment_type' /etc/wrktalk-agent/config.toml && ! grep -q 'Something new' /etc/wrktalk-agent/config.toml")

	w.Run("echo 2 >/var/lib/wrktalk-agent/format")
	if out, err := w.Try(rpm + "-U --oldpackage " + rpmFile(older)); err == nil || !strings.Contains(out, "has format 2") {
		t.Errorf("a downgrade over newer state: %v\n%s", err, out)
	}
	if got := w.Run("rpm -q --queryformat '%{version}' wrktalk-agent"); got != newer {
		t.Errorf("after the refused downgrade %s is installed", got)
	}

	w.Run("echo 1 >/var/lib/wrktalk-agent/format")

	testNginx(w)
	testHAProxy(w)
	testAsRoot(w)
	testHelm(w)

	w.Run(rpm + "-e wrktalk-agent")
	if out, err := w.Try("ls -l /proc/[0-9]*/exe 2>/dev/null | grep wrktalk"); err == nil {
		t.Errorf("after the removal there runs: %s", out)
	}
	// rpm puts a changed configuration aside.
	w.Run("test -e /etc/wrktalk-agent/config.toml.rpmsave -a -e /etc/wrktalk-agent/credentials/db_password -a -e /var/lib/wrktalk-agent/format")
	w.Run("ln /etc/wrktalk-agent/credentials/db_password /password")
	w.Run(testenv.Doc(t, "docs/installation.md", "Removal", 0))
	if left := w.Run("ls -d /etc/wrktalk-agent /var/lib/wrktalk-agent 2>/dev/null || true; cat /password"); left != "" && strings.Contains(left, "wrktalk") || strings.Contains(left, dbPassword) {
		t.Errorf("removed by hand, there is left: %q", left)
	}
}

// site is a web server in front of the application.
type site struct {
	*world
	url string
}

// pageShows deploys a release that takes a while to come up, and reports whether the
// maintenance page was there meanwhile.
func (s site) pageShows(version string) bool {
	s.t.Helper()
	seen := false
	look := func() bool {
		res, err := http.Get(s.url)
		if err != nil {
			s.t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			s.t.Fatal(err)
		}
		if res.StatusCode == http.StatusServiceUnavailable && strings.Contains(string(body), "is being updated") {
			seen = true
		}
		return res.StatusCode == http.StatusOK
	}
	s.eventually("the site answers", look)
	id := s.deployWith(version, "environment: {APP_MODE: late, APP_DELAY: 2s}")
	s.eventually("task "+id+" ends", func() bool {
		look()
		return s.sql("select completed_at is not null from agent_task where id = '%s'", id) == "t"
	})
	s.await(id)
	s.eventually("the site answers again", look)
	return seen
}

// testNginx switches the page of an nginx on the host with the packaged settings.
func testNginx(w *world) {
	w.t.Helper()
	address := freeAddress(w.t)
	w.Write("/etc/nginx/conf.d/site.conf", "server {\n\tlisten "+address+";\n\t"+testenv.Doc(w.t, "docs/maintenance.md", "nginx", 0)+
		"\tlocation / { return 200 \"the site\"; }\n}\n")
	w.Run("rm -f /etc/nginx/sites-enabled/default; systemctl start nginx")
	w.Run("sed -i -e 's/^mode_handler = .*/mode_handler = \"nginx\"\\nreload_command = \"\"/' -e '/^enter_command/d' -e '/^leave_command/d' /etc/wrktalk-agent/config.toml; systemctl restart wrktalk-agent")
	if !(site{w, "http://" + address}).pageShows("nginx") {
		w.t.Error("nginx never showed the page")
	}
}

// testHAProxy does the same with HAProxy.
func testHAProxy(w *world) {
	w.t.Helper()
	address, behind := freeAddress(w.t), freeAddress(w.t)
	w.Write("/etc/nginx/conf.d/site.conf", "server {\n\tlisten "+behind+";\n\tlocation / { return 200 \"the site\"; }\n}\n")
	w.Write("/run/haproxy.cfg", "\nfrontend wrktalk\n    bind "+address+"\n    default_backend wrktalk\nbackend wrktalk\n    server app1 "+behind+"\n"+
		testenv.Doc(w.t, "docs/maintenance.md", "HAProxy", 0))
	w.Run("cat /run/haproxy.cfg >>/etc/haproxy/haproxy.cfg; systemctl reload nginx; systemctl start haproxy")
	w.Write("/run/maintenance.toml", testenv.Doc(w.t, "docs/maintenance.md", "HAProxy", 1))
	w.Run(`usermod -aG haproxy wrktalk-agent
cd /etc/wrktalk-agent
sed -i -e '/^\[maintenance\]/d' -e '/^mode_handler/d' -e '/^reload_command/d' -e '/^flag_file/d' -e 's/^timeout = "10m"//' config.toml
cat /run/maintenance.toml >>config.toml
systemctl restart wrktalk-agent`)
	if !(site{w, "http://" + address}).pageShows("haproxy") {
		w.t.Error("HAProxy never showed the page")
	}
}

// testAsRoot runs the agent as root, as the pages say.
func testAsRoot(w *world) {
	w.t.Helper()
	w.Run("systemctl stop wrktalk-agent; rm -r /var/lib/wrktalk-agent/staging; mkdir -p /etc/systemd/system/wrktalk-agent.service.d")
	w.Write("/etc/systemd/system/wrktalk-agent.service.d/override.conf", testenv.Doc(w.t, "docs/installation.md", "As whom it runs", 0))
	w.Run("systemctl daemon-reload; systemctl start wrktalk-agent")
	w.await(w.deploy("root"))
	if got := w.Run("stat -c %U /proc/" + w.property(unit, "MainPID")); got != "root" {
		w.t.Errorf("the agent runs as %s", got)
	}
	w.Run("systemctl stop wrktalk-agent; rm -r /etc/systemd/system/wrktalk-agent.service.d /var/lib/wrktalk-agent/staging; systemctl daemon-reload")
	w.Run("chown -R wrktalk-agent: /var/lib/wrktalk-agent; systemd-tmpfiles --create wrktalk-agent.conf")
}

// testHelm deploys a chart, under the same unit.
func testHelm(w *world) {
	w.t.Helper()
	kube := testenv.SharedKubernetes(w.t)
	namespace := kube.Namespace(w.t)
	config, err := os.ReadFile(kube.AdminKubeconfig)
	if err != nil {
		w.t.Fatal(err)
	}
	w.Write("/run/admin.conf", string(config))
	w.Run("cd /run; " + testenv.Doc(w.t, "docs/installation.md", "What to do next", 2))
	w.Run(`cd /etc/wrktalk-agent
sed -i -e 's/^deployment_type = .*/deployment_type = "kubernetes"/' config.toml
printf '[kube]\nkubeconfig = "/etc/wrktalk-agent/kubeconfig"\nnamespace = "` + namespace + `"\n' >>config.toml
systemctl start wrktalk-agent`)
	chart := testenv.Tarball(w.t, map[string]string{
		"Chart.yaml":          "apiVersion: v2\nname: shop\nversion: 1.0.0\n",
		"templates/conf.yaml": "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: shop}\n",
	})
	w.sql("update deployment_config set deployment_type = 'kubernetes'")
	w.await(w.sql(`with a as (insert into release_artifact (release_version, chart_type, artifact_data, sha256)
			values ('helm', 'helm', '\x%x', encode(sha256('\x%[1]x'), 'hex')) returning id)
		insert into agent_task (type, release_artifact_id) select 'deploy', id from a returning id`, chart))
	if _, err := kube.Kubectl("get", "configmap", "shop", "-n", namespace); err != nil {
		w.t.Error(err)
	}
}

// freeAddress returns a loopback address that nobody listens on at the moment.
func freeAddress(t testing.TB) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
