package helm

import (
	"encoding/base64"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"

	"helm.sh/helm/v3/pkg/release"
	"helm.sh/helm/v3/pkg/releaseutil"
	"sigs.k8s.io/yaml"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
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
	values := map[string]any{}
	if err := yaml.Unmarshal(data, &values); err != nil {
		return nil, fmt.Errorf("read the row's values: %s", withoutQuotes(err))
	}
	if values == nil {
		values = map[string]any{}
	}
	return values, nil
}

// quoted is what YAML and JSON errors quote of the document.
var quoted = regexp.MustCompile("`[^`]*`|\"[^\"]*\"|'[^']*'")

// withoutQuotes returns err's text without what it quotes: the parser fails
// before anybody could tell what in it is secret.
func withoutQuotes(err error) string {
	return quoted.ReplaceAllString(oneLine(err.Error()), "…")
}

// harmlessKey are names that look like those of secrets, but hold names of
// Kubernetes objects.
var harmlessKey = regexp.MustCompile(`(?i)(name|ref|namespace|selector)$|^existing`)

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
	case own:
		add(found, path, text)
	case secret && !mask.LooksSecret(key):
		add(found, key, text) // by a name that does not look secret, short ones are left alone
	}
}

// add keeps text under name, or under one like it when that is taken.
func add(found map[string]string, name, text string) {
	for found[name] != "" && found[name] != text {
		name += "'"
	}
	found[name] = text
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
			continue
		}
		for k, v := range s.StringData {
			add(found, k, v)
		}
		for k, v := range s.Data {
			if plain, err := base64.StdEncoding.DecodeString(v); err == nil {
				add(found, k, string(plain))
			}
			add(found, k, v)
		}
	}
	return found
}

// secretsOfRelease returns what of a recorded revision must not show.
func secretsOfRelease(rel *release.Release) []map[string]string {
	found := []map[string]string{secretsOfValues(rel.Config), secretsOfManifest(rel.Manifest)}
	for _, h := range rel.Hooks {
		found = append(found, secretsOfManifest(h.Manifest))
	}
	return found
}
