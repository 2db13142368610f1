package packages

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/testenv"
)

const unit = "wrktalk-agent.service"

// components are the units of wrktalk-agent.target.
var components = []string{"wrktalk-agent-fetcher.service", "wrktalk-agent-runner.service", "wrktalk-agent-notifier.service"}

func deb(version string) string {
	return "/files/wrktalk-agent_" + version + "_" + runtime.GOARCH + ".deb"
}

func TestLintian(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("lintian"); err != nil {
		testenv.Missing(t, "lintian", err)
	}
	out, err := exec.Command("lintian", "--fail-on", "error,warning", "--allow-root",
		filepath.Join(packages(t), filepath.Base(deb(older)))).CombinedOutput()
	if err != nil {
		t.Errorf("lintian: %v\n%s", err, out)
	}
}

// The life of the deb on one host: each step stands on those before it.
func TestDeb(t *testing.T) {
	t.Parallel()
	w := newWorld(t)

	apt := strings.Split(testenv.Doc(t, "docs/installation.md", "Installation from packages", 0, "1.2.3_amd64", older+"_"+runtime.GOARCH), "\n")[0]
	said := w.Run("cd /files && " + apt)
	for _, want := range []string{"does not run yet", "/etc/wrktalk-agent/config.toml", "credentials/db_password", "systemctl enable --now wrktalk-agent"} {
		if !strings.Contains(said, want) {
			t.Errorf("the installation says nothing of %s:\n%s", want, said)
		}
	}
	for _, u := range append([]string{unit, "wrktalk-agent.target"}, components...) {
		if state := w.property(u, "ActiveState") + " " + w.property(u, "UnitFileState"); state != "inactive disabled" {
			t.Errorf("after the installation %s is %s", u, state)
		}
	}
	for path, want := range map[string]string{
		"/var/lib/wrktalk-agent":                 "700 wrktalk-agent",
		"/var/lib/wrktalk-agent/staging/running": "700 wrktalk-agent",
		"/run/wrktalk-agent":                     "755 wrktalk-agent",
		"/etc/wrktalk-agent/config.toml":         "644 root",
		"/etc/wrktalk-agent/credentials":         "700 root",
	} {
		if got := w.Run("stat -c '%a %U' " + path); got != want {
			t.Errorf("%s is %s, want %s", path, got, want)
		}
	}
	w.Run("for u in wrktalk-agent-fetcher wrktalk-agent-notifier; do systemd-analyze security --threshold=24 $u.service >/dev/null; done")

	w.configure()
	w.Run("wrktalk-agent config | grep -F 'credential, file /etc/wrktalk-agent/credentials/db_password'")
	w.Run(testenv.Doc(t, "docs/installation.md", "What to do next", 1))
	w.Run("systemctl enable --now wrktalk-agent")
	w.await(w.deploy("1"))
	w.Run("wrktalk-agent status") // as root, by hand
	if got := w.serving(); got != "1" {
		t.Errorf("release %s serves", got)
	}
	w.mails(1)
	if info, wrong := w.logged(unit, "6..6"), w.logged(unit, "0..5"); !strings.Contains(info, `"msg":"starting"`) || strings.Contains(wrong, `"level":"INFO"`) {
		t.Errorf("in the journal as information: %s\nas more than that: %s", info, wrong)
	}

	if said := w.Run(testenv.Doc(t, "docs/monitoring.md", "Logs", 0)); !strings.Contains(said, "\trunner\t") {
		t.Errorf("the tasks' lines of the log are:\n%s", said)
	}

	// An upgrade in the middle of a deployment lets that end, under the agent that began it.
	// It may take longer than the unit says: the agent asks for more time.
	const stop = 2 * time.Second
	w.Run(fmt.Sprintf("mkdir -p /run/systemd/system/%s.d; printf '[Service]\nTimeoutStopSec=%s\n' >/run/systemd/system/%[1]s.d/stop.conf; systemctl daemon-reload", unit, stop))
	former := w.pid(unit)
	task, release := w.deployHeld("2")
	w.Run("dpkg --force-confold -i " + deb(newer))
	w.eventually("the agent is being stopped", func() bool { return w.property(unit, "ActiveState") == "deactivating" })
	next := w.deploy("3")                                                         // which the former agent does not claim any more
	began, err := strconv.Atoi(w.property(unit, "StateChangeTimestampMonotonic")) // in microseconds
	if err != nil {
		t.Fatal(err)
	}
	w.eventually("the unit's own time to stop is over", func() bool {
		up, err := strconv.ParseFloat(w.Run("cut -d' ' -f1 /proc/uptime"), 64)
		return err == nil && up > float64(began)/1e6+2*stop.Seconds()
	})
	if pid := w.pid(unit); pid != former {
		t.Errorf("process %d became %d in the middle of a deployment", former, pid)
	}
	release()
	w.await(task)
	w.awaitActive(unit, former)
	w.await(next)
	if n := w.sql("select count(*) from agent_task where error_message is not null"); n != "0" {
		t.Errorf("%s tasks have an error", n)
	}
	w.Run("grep -q '^deployment_type' /etc/wrktalk-agent/config.toml && ! grep -q 'Something new' /etc/wrktalk-agent/config.toml")
	w.mails(3)

	// Killed, it comes back.
	former = w.pid(unit)
	w.Run("systemctl kill --signal=KILL wrktalk-agent")
	w.awaitActive(unit, former)

	// Downgrades: of state that the older version knows, and of state that it does not.
	former = w.pid(unit)
	w.Run("dpkg --force-confold -i " + deb(older))
	w.awaitActive(unit, former)
	w.Run("dpkg --force-confold -i " + deb(newer) + "; echo 2 >/var/lib/wrktalk-agent/format")
	if out, err := w.Try("dpkg --force-confold -i " + deb(older)); err == nil || !strings.Contains(out, "has format 2") {
		t.Errorf("a downgrade over newer state: %v\n%s", err, out)
	}
	if got := w.Run("dpkg-query -W -f '${Version} ${Status}' wrktalk-agent"); got != newer+" install ok installed" {
		t.Errorf("after the refused downgrade: %s", got)
	}
	w.Run("echo 1 >/var/lib/wrktalk-agent/format")

	// A reboot waits for a deployment, and the agent comes back with the host.
	task, release = w.deployHeld("reboot")
	w.Reboot(func() {
		w.eventually("the agent is being stopped", func() bool { return w.property(unit, "ActiveState") == "deactivating" })
		release()
		w.await(task)
	})
	w.awaitActive(unit, 0)
	w.await(w.deploy("rebooted"))
	w.mails(5)
	if n := w.sql("select count(*) from agent_task where error_message is not null"); n != "0" {
		t.Errorf("%s tasks have an error", n)
	}

	testTarget(w)

	// Removal stops it and keeps what it knows; purging keeps what is the releases'.
	w.Run("dpkg -r wrktalk-agent")
	if out, err := w.Try("ls -l /proc/[0-9]*/exe 2>/dev/null | grep wrktalk"); err == nil {
		t.Errorf("after the removal there runs: %s", out)
	}
	w.Run("test -e /etc/wrktalk-agent/config.toml -a -e /etc/wrktalk-agent/credentials/db_password -a -e /var/lib/wrktalk-agent/format")
	w.Run("cd /var/lib/wrktalk-agent; touch compose/projects/data; mkdir -p staging/ready/t; echo secret >staging/ready/t/.env; ln /var/lib/wrktalk-agent/staging/ready/t/.env /secret")
	said = w.Run("dpkg -P wrktalk-agent")
	if !strings.Contains(said, "kept, for containers may use it: /var/lib/wrktalk-agent/compose/projects") {
		t.Errorf("the purge says: %s", said)
	}
	if left := w.Run("find /etc/wrktalk-agent /run/wrktalk-agent /var/lib/wrktalk-agent -maxdepth 2 2>/dev/null || true"); left !=
		"/var/lib/wrktalk-agent\n/var/lib/wrktalk-agent/compose\n/var/lib/wrktalk-agent/compose/.wrktalk-agent\n/var/lib/wrktalk-agent/compose/projects" {
		t.Errorf("after the purge there is left:\n%s", left)
	}
	if left := w.Run("cat /secret"); strings.Contains(left, "secret") {
		t.Error("the purge unlinked a secret without overwriting it")
	}
	if got := w.serving(); got != "5" {
		t.Errorf("after the purge release %s serves", got)
	}
}

// testTarget has systemd supervise the components in place of the agent.
func testTarget(w *world) {
	w.t.Helper()
	w.Run(testenv.Doc(w.t, "docs/installation.md", "Two ways of supervision", 0))
	for _, u := range components {
		w.awaitActive(u, 0)
	}
	w.await(w.deploy("4"))
	w.mails(6)

	// Each sees what it needs.
	for _, u := range components {
		root := "/proc/" + w.Run("systemctl show --value --property=MainPID "+u) + "/root"
		_, socket := w.Try("test -S " + root + "/run/docker.sock")
		_, running := w.Try("test -r " + root + "/var/lib/wrktalk-agent/staging/running -a 700 = $(stat -c %a " + root + "/var/lib/wrktalk-agent/staging/running)")
		if (socket == nil) != strings.Contains(u, "runner") {
			w.t.Errorf("%s sees the engine's socket: %v", u, socket == nil)
		}
		if (running != nil) != strings.Contains(u, "notifier") {
			w.t.Errorf("%s sees what is staged: %v", u, running == nil)
		}
	}

	former := w.pid("wrktalk-agent-runner.service")
	task, release := w.deployHeld("5")
	w.Run("dpkg --force-confold -i " + deb(newer))
	w.eventually("the runner is being stopped", func() bool { return w.property("wrktalk-agent-runner.service", "ActiveState") == "deactivating" })
	release()
	w.await(task)
	w.awaitActive("wrktalk-agent-runner.service", former)
	w.mails(7)
	if n := w.sql("select count(*) from agent_task where error_message is not null"); n != "0" {
		w.t.Errorf("%s tasks have an error", n)
	}
}
