package packages

import (
	"strings"
	"testing"
)

// rpmFile is the package for this machine, whatever rpm calls its architecture.
func rpmFile(version string) string { return "/files/wrktalk-agent-" + version + "-1.*.rpm" }

// The rpm's scripts do what the deb's do. Dependencies are Debian's here, of which rpm knows
// nothing.
func TestRPM(t *testing.T) {
	t.Parallel()
	w := newWorld(t)
	rpm := "rpm --force-debian --nodeps "

	if said := w.Run(rpm + "-i " + rpmFile(older)); !strings.Contains(said, "does not run yet") {
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

	w.Run(rpm + "-e wrktalk-agent")
	if out, err := w.Try("ls -l /proc/[0-9]*/exe 2>/dev/null | grep wrktalk"); err == nil {
		t.Errorf("after the removal there runs: %s", out)
	}
	// rpm puts a changed configuration aside.
	w.Run("test -e /etc/wrktalk-agent/config.toml.rpmsave -a -e /etc/wrktalk-agent/credentials/db_password -a -e /var/lib/wrktalk-agent/format")
}
