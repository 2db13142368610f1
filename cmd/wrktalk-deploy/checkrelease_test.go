package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/wrktalk/wrktalk-agent/runner/protocol"
)

// What push stores is what a deployment would not refuse, as far as the release alone
// tells: the engine and the cluster are not asked.
func TestCheckRelease(t *testing.T) {
	t.Parallel()
	compose := protocol.Settings{Compose: &protocol.Compose{Project: "wrktalk", WorkingDir: "/nowhere"}}
	helm := protocol.Settings{Helm: &protocol.Helm{Namespace: "wrktalk", Release: "wrktalk"}}
	const app = "services:\n  app:\n    image: app\n"
	const chart = "apiVersion: v2\nname: app\nversion: 1.0.0\n"
	for name, tt := range map[string]struct {
		settings protocol.Settings
		files    map[string]string
		text     string // .env or values.yaml of the row
		want     string
	}{
		"compose":                   {compose, map[string]string{"compose.yaml": app + "    env_file: .env\n    labels: ['a=${A:?}']\n"}, "A=b", ""},
		"compose beside others":     {compose, map[string]string{"app/compose.yaml": app, "__MACOSX/app/._compose.yaml": "x"}, "", ""},
		"host files are the host's": {compose, map[string]string{"compose.yaml": app + "    volumes: ['/gone/on/this/host:/x']\n"}, "", ""},
		"no Compose file":           {compose, map[string]string{"stack.yml": app}, "", "find the Compose file"},
		"broken YAML":               {compose, map[string]string{"compose.yaml": "services:\n  app: [\n"}, "", "parse compose.yaml"},
		"not Compose":               {compose, map[string]string{"compose.yaml": "a: b\n"}, "", "load the Compose file"},
		"missing variable":          {compose, map[string]string{"compose.yaml": app + "    labels: ['a=${A:?give it}']\n"}, "", "give it"},
		"missing env_file":          {compose, map[string]string{"compose.yaml": app + "    env_file: app.env\n"}, "", "the release has no file app.env"},
		"missing secret":            {compose, map[string]string{"compose.yaml": app + "    secrets: [s]\nsecrets: {s: {file: ./s.txt}}\n"}, "", "s.txt"},
		"outside":                   {compose, map[string]string{"compose.yaml": "include: [../other.yaml]\n" + app}, "", "outside of the release"},
		"an env that is none":       {compose, map[string]string{"compose.yaml": app}, "PASSWORD 'hunter22", "read the release's env: line 1"},
		"a secret in the error":     {compose, map[string]string{"compose.yaml": "services:\n  app:\n    image: app\n    ports: ['${PASSWORD}']\n"}, "PASSWORD=hunter22", "${PASSWORD}"},
		"helm":                      {helm, map[string]string{"chart/Chart.yaml": chart, "chart/templates/a.yaml": "{{ required \"x\" .Values.x }}{{ fail \"here\" }}"}, "", ""},
		"no chart":                  {helm, map[string]string{"templates/a.yaml": ""}, "", "holds no Chart.yaml"},
		"broken chart":              {helm, map[string]string{"Chart.yaml": "{{"}, "", "Chart.yaml"},
		"broken values":             {helm, map[string]string{"Chart.yaml": chart}, "password: hunter22: x", "read the row's values"},
		"broken template":           {helm, map[string]string{"Chart.yaml": chart, "templates/a.yaml": "{{ if }}"}, "", "parse error"},
		"values against the schema": {
			helm, map[string]string{"Chart.yaml": chart, "values.schema.json": `{"properties":{"count":{"type":"integer"}}}`}, "count: many", "schema",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			payload := filepath.Join(dir, "payload")
			job := protocol.Job{Schema: protocol.Schema, Settings: tt.settings, Release: protocol.Release{Version: "1.0.0", PayloadDir: payload}}
			files := map[string]string{"text": tt.text}
			for name, content := range tt.files {
				files["payload/"+name] = content
			}
			for name, content := range files {
				full := filepath.Join(dir, name)
				err := os.MkdirAll(filepath.Dir(full), 0o755)
				if err == nil {
					err = os.WriteFile(full, []byte(content), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			switch {
			case tt.text == "":
			case tt.settings.Helm != nil:
				job.Release.ValuesFile = filepath.Join(dir, "text")
			default:
				job.Release.EnvFile = filepath.Join(dir, "text")
			}
			in, err := json.Marshal(job)
			if err != nil {
				t.Fatal(err)
			}
			cmd := exec.Command(os.Args[0], protocol.CheckReleaseArg)
			cmd.Env = append(os.Environ(), beProgram+"=1", "A=of-the-os")
			cmd.Stdin = bytes.NewReader(in)
			out, err := cmd.CombinedOutput()
			text := string(out)
			if (err == nil) != (tt.want == "") || cmd.ProcessState.ExitCode() > 1 || !strings.Contains(text, tt.want) || strings.Count(text, "\n") > 1 {
				t.Errorf("%v: %s", err, text)
			}
			if strings.Contains(text, "hunter22") || strings.Contains(text, dir) {
				t.Errorf("it shows what it should not: %s", text)
			}
		})
	}
}
