package compose

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/docker/compose/v2/pkg/api"

	"github.com/wrktalk/wrktalk-agent/internal/task"
	"github.com/wrktalk/wrktalk-agent/internal/testenv"
	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

func TestDeployAndUpgrade(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	const worker = `
  worker:
    image: %IMAGE%
    stop_grace_period: 1s
`
	workers := strings.ReplaceAll(worker, "%IMAGE%", b.image)
	one := b.release("1.0", map[string]string{"app/compose.yaml": b.web("1.0", workers)}, "")
	two := b.release("2.0", map[string]string{"app/compose.yaml": b.web("2.0", workers)}, "")
	gone := `
  gone:
    image: ` + b.image + "\n"

	b.up(b.release("0.9", map[string]string{"docker-compose.yml": b.web("0.9", workers+gone)}, ""), nil)
	if got := b.containers(); got != 3 {
		t.Fatalf("%d containers of 3", got)
	}
	b.up(one, nil)
	if got := b.containers(); got != 2 {
		t.Fatalf("the orphan stays: %d containers", got)
	}
	if got := b.ask("web", "/"); got != "1.0" {
		t.Fatalf("web answers %q", got)
	}
	var phases []task.Phase
	for _, e := range b.events {
		phases = append(phases, e.Phase)
	}
	if want := []task.Phase{task.PhasePreflight, task.PhaseApplying, task.PhaseWaiting}; !slices.Equal(phases, want) {
		t.Errorf("phases %v, want %v", phases, want)
	}

	workerID, webID := b.container("worker"), b.container("web")
	b.up(two, kept(one))
	if got := b.ask("web", "/"); got != "2.0" {
		t.Errorf("web answers %q", got)
	}
	if b.container("worker") != workerID {
		t.Error("the unchanged worker was recreated by an upgrade")
	}
	if b.container("web") == webID {
		t.Error("web was not recreated")
	}
	webID = b.container("web")
	again := b.job(two, two)
	again.TaskID, again.Token = "another task", "another token"
	if res := b.run(again); !res.Succeeded {
		t.Fatal(res)
	}
	if b.container("web") != webID || b.container("worker") != workerID {
		t.Error("a redeployment of the same release recreated containers")
	}
	if link, err := os.Readlink(filepath.Join(b.workdir, "current")); err != nil || link != protocol.BundlesDir+"/"+two.Bundle() {
		t.Errorf("current is %q, %v", link, err)
	}
}

func TestLabels(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	rel := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, "")
	b.up(rel, nil)
	dir := filepath.Join(b.workdir, projectsDir, b.project, projectDir)
	for label, want := range map[string]string{
		api.ProjectLabel: b.project, api.ServiceLabel: "web", api.OneoffLabel: "False",
		api.WorkingDirLabel: dir, api.ConfigFilesLabel: dir + "/compose.yaml", api.ContainerNumberLabel: "1", api.VersionLabel: composeVersion,
		labelTask: "task-1.0", labelToken: "token-1.0", labelRelease: "1.0",
	} {
		if got := testenv.DockerOutput(t, "inspect", "--format", `{{index .Config.Labels "`+label+`"}}`, b.container("web")); got != want {
			t.Errorf("%s is %q, want %q", label, got, want)
		}
	}
}

func TestComposeVersion(t *testing.T) {
	t.Parallel()
	mod, err := os.ReadFile("../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(mod), "github.com/docker/compose/v2 v"+composeVersion) {
		t.Errorf("go.mod names another version of the library than %s", composeVersion)
	}
}

func TestBundleOutlivesTheRun(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	rel := b.release("1.0", map[string]string{
		"compose.yaml":     b.web("1.0", "    volumes: ['./conf/motd:/motd:ro']\n"),
		"conf/motd":        "from the bundle",
		"conf/unused.conf": "",
	}, "")
	b.up(rel, nil)
	if err := os.RemoveAll(filepath.Dir(rel.PayloadDir)); err != nil {
		t.Fatal(err)
	}
	testenv.DockerOutput(t, "restart", "--time", "1", b.container("web"))
	b.await("web")
	if got := b.ask("web", "/file?path=/motd"); got != "from the bundle" {
		t.Errorf("after the restart the file reads %q", got)
	}
}

func TestEnv(t *testing.T) {
	t.Setenv("WRKTALK_AGENT_DB_PASSWORD", "of-the-agent")
	t.Setenv("FROM_OS", "of-the-os")
	t.Setenv("COMPOSE_PROFILES", "never")
	b := newFixture(t)
	rel := b.release("1.0", map[string]string{
		"app/docker-compose.yaml": `
services:
  web:
    image: ` + b.image + `
    ports: ["127.0.0.1::8080"]
    stop_grace_period: 1s
    env_file:
      - path: missing.env
        required: false
      - other.env
      - ./.env
      - path: raw.env
        format: raw
    environment:
      APP_VERSION: ${TITLE}
      WINS: by-environment
      LEAK: "${WRKTALK_AGENT_DB_PASSWORD:-nothing}${FROM_OS:-}"
      PASSED:
      FROM_OS:
    healthcheck: {test: [CMD, /app, health], interval: 200ms}
  extra:
    image: ` + b.image + `
    profiles: [more]
    environment: [PASSED]
  absent:
    image: ` + b.image + `
    profiles: [never]
`,
		"app/other.env": "ONLY_OTHER=other\nBOTH=other\nWINS=file\n",
		"app/raw.env":   "RAW=${TITLE}\n",
		"app/.env":      "TITLE=of-the-bundle\nBUNDLE_ONLY=x\n",
	}, "TITLE=of-the-row\nBOTH=row\nPASSED=handed-through\nDB_PASSWORD=top-secret-1\nREF=${DB_PASSWORD}!\nOUT=${FROM_OS:-}\nCOMPOSE_PROFILES=more\n")
	b.up(rel, nil)
	for name, want := range map[string]string{
		"APP_VERSION": "of-the-row", "WINS": "by-environment", "LEAK": "nothing", "PASSED": "handed-through",
		"FROM_OS": "404", "ONLY_OTHER": "other", "BOTH": "row", "DB_PASSWORD": "top-secret-1", "REF": "top-secret-1!",
		"OUT": "", "RAW": "${TITLE}", "BUNDLE_ONLY": "404", "WRKTALK_AGENT_DB_PASSWORD": "404",
	} {
		if got := b.env("web", name); got != want {
			t.Errorf("%s is %q, want %q", name, got, want)
		}
	}
	if b.containers() != 2 {
		t.Errorf("%d containers: the profiles of the row's env were not followed", b.containers())
	}
	if found := contains(t, b.workdir, "top-secret-1"); found != nil {
		t.Errorf("the env is in the working directory: %v", found)
	}
	if found := contains(t, b.workdir, "of-the-bundle"); found != nil {
		t.Errorf("the bundle's own .env was kept: %v", found)
	}
	if !strings.Contains(b.log, "is ignored") {
		t.Error("nothing says that the bundle's .env is ignored")
	}
}

func TestOneShot(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.up(b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", `
    depends_on:
      migrate: {condition: service_completed_successfully}
  migrate:
    image: `+b.image+`
    command: [once]
  alone:
    image: `+b.image+`
    command: [once]
    restart: on-failure
`)}, ""), nil)
}

func TestRefusedApproval(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	b.deny = errDenied
	res := b.run(b.job(b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "")}, ""), nil))
	failsWith(t, res, "maintenance could not be entered")
	if res.Changed || b.containers() != 0 {
		t.Errorf("changed without approval: %+v", res)
	}
}

func TestPrune(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	var releases []*protocol.Release
	for _, v := range []string{"1", "2", "3", "4", "5"} {
		releases = append(releases, b.release(v, map[string]string{"compose.yaml": b.web(v, ""), "motd": "x"}, ""))
	}
	var prev *protocol.Release
	for _, rel := range releases {
		b.up(rel, prev)
		prev = kept(rel)
	}
	// 5 serves, 4 is the previous, 3 is the one more to keep, and 2 and 1 go.
	want := []string{releases[2].Bundle(), releases[3].Bundle(), releases[4].Bundle()}
	if got := b.bundles(); !slices.Equal(got, want) {
		t.Errorf("kept %v, want %v", got, want)
	}
}

// TestDataSurvives: what containers write below a relative path is there with every
// release that follows, and with the one that comes back; what a release mounts
// unchanged leaves its service alone, and what it changes is seen.
func TestDataSurvives(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	release := func(version, conf, more string) *protocol.Release {
		text := b.web(version, "    volumes: ['./data:/data', './conf:/conf:ro', './motd:/motd:ro']\n"+more+`
  db:
    image: `+b.image+`
    stop_grace_period: 1s
    volumes: ["./my.cnf:/etc/my.cnf:ro", "./dbdata:/var/lib/db"]
`)
		return b.release(version, map[string]string{
			"app-" + version + "/compose.yaml": text, "app-" + version + "/my.cnf": "x", "app-" + version + "/motd": conf,
			"app-" + version + "/conf/" + version: conf, "app-" + version + "/conf/c": conf,
		}, "")
	}
	one, two := release("1.0", "one", ""), release("2.0", "two", "")
	bad := release("3.0", "three", "    command: [crash]\n")
	serves := func(version, conf string) {
		t.Helper()
		for path, want := range map[string]string{
			"/": version, "/file?path=/data/db": "rows", "/file?path=/conf/c": conf, "/file?path=/motd": conf, "/file?path=/conf/" + version: conf,
		} {
			if got := b.ask("web", path); got != want {
				t.Errorf("%s of release %s is %q, want %q", path, version, got, want)
			}
		}
	}
	b.up(one, nil)
	data := filepath.Join(b.workdir, projectsDir, b.project, projectDir, "data") // the engine made it
	if err := os.WriteFile(filepath.Join(data, "db"), []byte("rows"), 0o600); err != nil {
		t.Fatal(err)
	}
	serves("1.0", "one")
	db := b.container("db")
	b.up(two, kept(one))
	serves("2.0", "two")
	if got := b.ask("web", "/file?path=/conf/1.0"); got != "404" {
		t.Errorf("a file of the former release stays: %s", got)
	}
	if res := b.run(b.job(bad, kept(two))); !res.Restored {
		t.Fatalf("%+v", res)
	}
	serves("2.0", "two")
	back := b.job(kept(one), kept(two))
	back.Kind, back.TaskID = task.KindRollback, "back"
	if res := b.run(back); !res.Succeeded {
		t.Fatalf("%+v", res)
	}
	serves("1.0", "one")
	if b.container("db") != db {
		t.Error("a service whose files did not change was recreated")
	}
}

// TestFilesAreInTheWay: a release whose files cannot be laid out is refused before
// anything changes.
func TestFilesAreInTheWay(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	one := b.release("1.0", map[string]string{"compose.yaml": b.web("1.0", "    volumes: ['./data:/data']\n")}, "")
	two := b.release("2.0", map[string]string{"compose.yaml": b.web("2.0", ""), "data": "a file"}, "")
	b.up(one, nil)
	web := b.container("web")
	if err := os.WriteFile(filepath.Join(b.workdir, projectsDir, b.project, projectDir, "data/db"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	res := b.run(b.job(two, kept(one)))
	failsWith(t, res, "release 2.0 has the file data", "somebody else wrote project/data/db")
	if res.Changed || b.container("web") != web || b.approvals != 0 {
		t.Errorf("%+v", res)
	}
}
