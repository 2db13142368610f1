package helm

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	goyaml "go.yaml.in/yaml/v3"
	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"sigs.k8s.io/yaml"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// maxValues bounds the row's values, in bytes. Larger ones would not fit the
// release's record anyway.
const maxValues = 8 << 20

// readValues reads the row's values; no file is no values. The error does not
// quote the text, which is secret.
func readValues(path string) (map[string]any, error) {
	if path == "" {
		return map[string]any{}, nil
	}
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read the row's values: %w", err)
	}
	if info.Size() > maxValues {
		return nil, fmt.Errorf("read the row's values: they have %d bytes, more than the %d allowed", info.Size(), maxValues)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read the row's values: %w", err)
	}
	if err := checkYAML(data); err != nil {
		return nil, fmt.Errorf("read the row's values: %s", withoutQuotes(err))
	}
	values := map[string]any{}
	if err := yaml.Unmarshal(data, &values); err != nil {
		return nil, fmt.Errorf("read the row's values: %s", withoutQuotes(err))
	}
	if values == nil {
		values = map[string]any{}
	}
	return values, nil
}

// maxYAMLValues bounds the values of a YAML text, once aliases are expanded.
const maxYAMLValues = 2_000_000

// checkYAML refuses a text that would keep whoever reads it busy for minutes.
func checkYAML(data []byte) error {
	bounds := deploy.YAMLBounds{Values: maxYAMLValues}
	for decoder := goyaml.NewDecoder(bytes.NewReader(data)); ; {
		var node goyaml.Node
		if err := decoder.Decode(&node); err != nil {
			return nil // its end, or what the reader will say in its own words
		}
		if err := bounds.Check(&node); err != nil {
			return err
		}
	}
}

// quoted is what YAML and JSON errors quote of the document.
var quoted = regexp.MustCompile("`[^`]*`|\"[^\"]*\"|'[^']*'")

// withoutQuotes returns err's text without what it quotes: the parser fails
// before anybody could tell what in it is secret.
func withoutQuotes(err error) string {
	return quoted.ReplaceAllString(deploy.OneLine(err.Error()), "…")
}

// harmlessKey are names that look like those of secrets, but hold names of
// Kubernetes objects.
var harmlessKey = regexp.MustCompile(`(?i)(name|ref|namespace|selector|user_?key|username_?key)$|^existing`)

// keyOfSecret are names under which charts take the name of a key in a Secret, as in
// "secretKeys: {adminPasswordKey: postgres-password}", and keyName is such a value.
var (
	keyOfSecret = regexp.MustCompile(`(?i)(password|passwd|token)_?key$`)
	keyName     = regexp.MustCompile(`^[a-z]+([-_.][a-z]+)*$`)
)

// secretValues adds to found what of values must not show. A value whose own key
// looks secret counts whatever it is. Below a key that looks secret every longer
// value counts; most short ones there are user names and the like, which would
// take half the sentence with them.
func secretValues(found map[string]string, path string, secret bool, value any) {
	key := path[strings.LastIndexByte(path, '.')+1:]
	own := mask.LooksSecret(key) && !harmlessKey.MatchString(key)
	var text string
	switch v := value.(type) {
	case map[string]any:
		if name, value, ok := variable(v); ok {
			secretValues(found, join(path, strings.ReplaceAll(name, ".", "_")), secret || own, value)
			return
		}
		for k, item := range v {
			// A dot in a key would pass for a level.
			secretValues(found, join(path, strings.ReplaceAll(k, ".", "_")), secret || own, item)
		}
		return
	case []any:
		for i, item := range v {
			if _, leaf := item.(string); leaf {
				secretValues(found, path, secret, item)
				continue
			}
			secretValues(found, join(path, strconv.Itoa(i)), secret || own, item)
		}
		return
	case string:
		text = v
	case float64:
		text = strconv.FormatFloat(v, 'f', -1, 64)
	default:
		return
	}
	switch {
	case own && keyOfSecret.MatchString(key) && keyName.MatchString(text) && mask.LooksSecret(text):
	case own:
		mask.Add(found, path, text)
	case secret && !mask.LooksSecret(key):
		mask.Add(found, key, text) // by a name that does not look secret, short ones are left alone
	case !mask.LooksSecret(key):
		mask.Literal(found, path, text)
	}
}

// variable returns an entry of a list of variables, as containers have it.
func variable(entry map[string]any) (name string, value any, ok bool) {
	name, named := entry["name"].(string)
	value, ok = entry["value"]
	return name, value, named && ok && len(entry) == 2
}

func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}

// secretsOfValues returns the secrets among values.
func secretsOfValues(values map[string]any) map[string]string {
	found := map[string]string{}
	secretValues(found, "", false, values)
	return found
}

// secretsOfManifest returns the contents of the Secrets in a manifest: Helm's
// and the API's errors quote the documents they complain about.
func secretsOfManifest(manifest string) map[string]string {
	found := map[string]string{}
	for _, doc := range releaseutil.SplitManifests(manifest) {
		var s struct {
			Kind       string            `json:"kind"`
			Data       map[string]string `json:"data"`
			StringData map[string]string `json:"stringData"`
		}
		if yaml.Unmarshal([]byte(doc), &s) != nil || s.Kind != "Secret" {
			var object any
			if yaml.Unmarshal([]byte(doc), &object) == nil {
				secretVariables(found, object)
			}
			continue
		}
		for k, v := range s.StringData {
			mask.Add(found, k, v)
		}
		for k, v := range s.Data {
			if plain, err := base64.StdEncoding.DecodeString(v); err == nil {
				mask.Add(found, k, string(plain))
			}
			mask.Add(found, k, v)
		}
	}
	return found
}

// secretVariables adds the variables of containers, and their arguments, that look
// like secrets.
func secretVariables(found map[string]string, object any) {
	switch v := object.(type) {
	case map[string]any:
		if name, value, ok := variable(v); ok {
			secretValues(found, name, false, value)
			return
		}
		for key, item := range v {
			if list, ok := item.([]any); ok && (key == "args" || key == "command") {
				for name, value := range mask.Arguments(texts(list)) {
					mask.Add(found, name, value)
				}
				continue
			}
			secretVariables(found, item)
		}
	case []any:
		for _, item := range v {
			secretVariables(found, item)
		}
	}
}

// texts returns the texts of a list.
func texts(list []any) []string {
	var found []string
	for _, item := range list {
		if text, ok := item.(string); ok {
			found = append(found, text)
		}
	}
	return found
}

// secretsOfRelease returns what of a recorded revision must not show.
func secretsOfRelease(rel *release.Release) []map[string]string {
	found := []map[string]string{secretsOfValues(rel.Config), secretsOfManifest(rel.Manifest)}
	if rel.Chart != nil {
		found = append(found, secretsOfValues(rel.Chart.Values))
	}
	for _, h := range rel.Hooks {
		found = append(found, secretsOfManifest(h.Manifest))
	}
	return found
}
