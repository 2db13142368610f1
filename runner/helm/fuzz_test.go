package helm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Values are read, or refused in a line that does not quote them.
func FuzzValues(f *testing.F) {
	for _, s := range []string{"", "a: 1", "a: &a [1]\nb: [*a, *a]", "a: \"canary-of-a-secret", "- list", "null", "a: !!binary x", "{a: {b: [}", "\xff", "a: 1\n---\nb: 2"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		path := filepath.Join(t.TempDir(), "values.yaml")
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		values, err := readValues(path)
		if err == nil {
			secretsOfValues(values)
			return
		}
		if strings.ContainsAny(err.Error(), "\r\n") {
			t.Errorf("the error is not one line: %q", err)
		}
	})
}

// A manifest of a revision that somebody else wrote may be anything.
func FuzzManifest(f *testing.F) {
	for _, s := range []string{
		"", "kind: Secret\napiVersion: v1\nmetadata: {name: a}\ndata: {p: c2VjcmV0LXZhbHVl}\n", "---\n---\n", "kind: [x]\n", "a: *b",
		"apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: web}\nspec: {template: {spec: {containers: [{env: [{name: PASSWORD, value: canary}]}]}}}\n",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, manifest string) {
		secretsOfManifest(manifest)
		for _, o := range watchedIn(manifest, "default") {
			if o.namespace == "" {
				t.Errorf("%s is in no namespace", o)
			}
		}
	})
}
