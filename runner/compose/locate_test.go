package compose

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestComposeVariables: files and variables are what docker compose would take in
// the release's directory.
func TestComposeVariables(t *testing.T) {
	t.Parallel()
	b := newFixture(t)
	files := map[string]string{
		"compose.yaml":           b.web("base", ""),
		"compose.override.yaml":  "services: {web: {environment: {MODE: override}}}\n",
		"prod.yaml":              "services: {web: {environment: {MODE: prod, HERE: '${PWD}'}}, worker: {image: " + b.image + ", stop_grace_period: 1s}}\n",
		"deploy/compose.yml":     b.web("deploy", "    env_file: [near.env]\n    environment: {APP_VERSION: deploy, MODE: '${MODE}', NEAR: '${NEAR:-none}'}\n"),
		"deploy/near.env":        "FROM_FILE=near\n",
		"deploy/.env":            "NEAR=of-the-directory\nMODE=of-the-directory\n",
		"deploy/more/extra.yaml": "services: {extra: {image: " + b.image + ", stop_grace_period: 1s, env_file: [near.env]}}\n",
	}
	files["deploy/compose.yml"] = strings.Replace(files["deploy/compose.yml"], "    environment:\n      APP_VERSION: \"deploy\"\n", "", 1)
	with := func(more map[string]string) map[string]string {
		all := map[string]string{}
		for _, m := range []map[string]string{files, more} {
			for k, v := range m {
				all[k] = v
			}
		}
		return all
	}
	check := func(containers int, want map[string]string) {
		t.Helper()
		if got := b.containers(); got != containers {
			t.Errorf("%d containers, want %d", got, containers)
		}
		for name, value := range want {
			if got := b.env("web", name); got != value {
				t.Errorf("%s is %q, want %q", name, got, value)
			}
		}
	}
	res := b.up(b.release("1", files, "COMPOSE_PROJECT_NAME=other\n"), nil)
	check(1, map[string]string{"MODE": "404"})
	for _, text := range []string{"compose.override.yaml is not used", "COMPOSE_PROJECT_NAME is not used", b.project} {
		if !strings.Contains(res.Message, text) {
			t.Errorf("the result %q does not say %q", res.Message, text)
		}
	}
	res = b.up(b.release("2", files, "COMPOSE_FILE=compose.yaml:prod.yaml\n"), nil)
	check(2, map[string]string{"MODE": "prod"})
	if strings.Contains(res.Message, "not used") {
		t.Error(res.Message)
	}
	if here := b.env("web", "HERE"); !strings.HasPrefix(here, filepath.Dir(b.workdir)) {
		t.Errorf("PWD is %q", here)
	}
	b.up(b.release("3", files, "COMPOSE_PATH_SEPARATOR=,\nCOMPOSE_FILE=compose.yaml,compose.override.yaml\nPWD=/set\n"), nil)
	check(1, map[string]string{"MODE": "override"})
	// The first file's directory is the project directory; its .env is not read where
	// the row has an env.
	b.up(b.release("4", files, "COMPOSE_FILE=deploy/compose.yml:deploy/more/extra.yaml\nMODE=row\n"), nil)
	check(2, map[string]string{"MODE": "row", "NEAR": "none", "FROM_FILE": "near"})

	// Without an env in the row, the release's own .env takes its place.
	own := b.release("5", with(map[string]string{".env": "COMPOSE_FILE=deploy/compose.yml\nMODE=own\nSECRET_KEY=own-secret-key-1\n"}), "")
	b.up(own, nil)
	check(1, map[string]string{"MODE": "own", "NEAR": "of-the-directory", "FROM_FILE": "near"})
	plain := b.release("6", map[string]string{"compose.yaml": b.web("six", "    env_file: [.env]\n"), ".env": "SIX=yes\n"}, "")
	b.up(plain, nil)
	check(1, map[string]string{"SIX": "yes", "MODE": "404"})
	b.up(kept(own), kept(plain))
	check(1, map[string]string{"MODE": "own"})
}

// TestComposeFileRefused: a COMPOSE_FILE that cannot be followed is never passed over.
func TestComposeFileRefused(t *testing.T) {
	t.Parallel()
	for names, want := range map[string]string{
		"missing.yaml":         `"missing.yaml", and the release has no such file`,
		"compose.yaml:missing": `"missing", and the release has no such file`,
		"../compose.yaml":      "outside of the release",
		"/etc/compose.yaml":    "outside of the release",
		"oci://example.org/x":  `no such file`, // : separates
		"-":                    "standard input",
		"compose.yaml:.":       "no such file",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "compose.yaml"), []byte("services: {web: {image: x}}\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		root, err := os.OpenRoot(dir)
		if err != nil {
			t.Fatal(err)
		}
		defer root.Close()
		env := rowEnv{given: true, values: map[string]string{"COMPOSE_FILE": names}}
		if _, err := locate(root, env); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "COMPOSE_FILE") {
			t.Errorf("%s: %v", names, err)
		}
	}
}
