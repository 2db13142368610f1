package config

import (
	"errors"
	"path/filepath"
	"slices"
	"strings"

	"github.com/wrktalk/wrktalk-agent/internal/policy"
)

// Policy is the [policy] section.
type Policy struct {
	Preset       policy.Preset
	Choices      [len(policy.Keys)]policy.Choice // in the order of policy.Keys
	OwnParents   policy.Parents
	AllowedPaths []string // absolute
}

var policyKeys = func() []key {
	list := []key{
		{
			"policy.preset", string(policy.PresetDefault), "what holds for the keys below that say preset: default allows them, restricted refuses them",
			choice(func(c *Config) *policy.Preset { return &c.Policy.Preset }, policy.PresetDefault, policy.PresetRestricted),
		},
		{
			"policy.allowed_paths", "", "files and directories of the host that releases may have whatever else is refused",
			paths(func(c *Config) *[]string { return &c.Policy.AllowedPaths }),
		},
		{
			"policy.own_parents", string(policy.ParentsAsPreset), "mounts of a directory that holds something of the agent's own; the default preset has read-only, restricted has refuse",
			choice(func(c *Config) *policy.Parents { return &c.Policy.OwnParents },
				policy.ParentsAsPreset, policy.ParentsAllow, policy.ParentsReadOnly, policy.ParentsRefuse),
		},
	}
	for i, k := range policy.Keys {
		list = append(list, key{
			"policy." + string(k.Key), string(policy.AsPreset), k.Doc,
			choice(func(c *Config) *policy.Choice { return &c.Policy.Choices[i] }, policy.AsPreset, policy.Allow, policy.Refuse),
		})
	}
	return list
}()

// paths accepts absolute paths, separated by commas.
func paths(field func(*Config) *[]string) binding {
	return bind(kindList, field, func(s string) ([]string, error) {
		var list []string
		for p := range strings.SplitSeq(s, ",") {
			p = strings.TrimSpace(p)
			if p == "" {
				continue
			}
			if err := oneLine(p); err != nil {
				return nil, err
			}
			if !filepath.IsAbs(p) {
				return nil, errors.New("want absolute paths, separated by commas")
			}
			list = append(list, filepath.Clean(p))
		}
		return list, nil
	}, func(list []string) string { return strings.Join(list, ",") })
}

// Rules returns what releases may ask for.
func (c *Config) Rules() policy.Rules {
	r := policy.New(c.Policy.Preset, c.Policy.Choices, c.Policy.OwnParents)
	r.AllowedPaths, r.Own = c.Policy.AllowedPaths, c.ownPaths()
	return r
}

// ownPaths returns the agent's own files and directories: those that hold its
// state, its sockets, its configuration and the secrets that this names. What it
// shares with others by its nature is none of them: the flag file, HAProxy's
// socket, the directory where releases lie, certificates of authorities.
func (c *Config) ownPaths() []string {
	own := []string{c.StateDir, c.RuntimeDir, c.Staging.Dir, c.History.Dir, filepath.Dir(systemFile), c.DB.SSLKey, c.Kube.Kubeconfig}
	if file, err := filepath.Abs(c.File); err == nil && c.File != "" {
		own = append(own, file)
	}
	for _, e := range c.entries {
		if _, file, ok := strings.Cut(e.source, ", file "); ok {
			own = append(own, file)
		}
		if strings.HasPrefix(e.source, "systemd credential ") {
			own = append(own, "/run/credentials")
		}
	}
	own = slices.DeleteFunc(own, func(p string) bool { return !filepath.IsAbs(p) })
	slices.Sort(own)
	return slices.Compact(own)
}
