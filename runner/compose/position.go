package compose

import (
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"go.yaml.in/yaml/v3"
)

// maxExtends bounds how many services that extend each other are looked through
// for the line that says something.
const maxExtends = 50

// find returns where the Compose files that were read so far say name at keys, as
// compose.yaml:12; without such a name, where the last of the keys stands. "" when
// nobody can tell. What a service has from one that it extends is found there.
func (s *scan) find(name string, keys ...string) string {
	best, bestLine, bestRank := "", 0, 0
	for _, path := range s.order {
		for _, doc := range s.docs[path] {
			line, rank := s.lineOf(doc, name, keys)
			if rank >= bestRank && rank > 0 { // of two files the later one wins
				best, bestLine, bestRank = s.name(path), line, rank
			}
		}
	}
	if bestRank < foundName && len(keys) > 2 && keys[0] == "services" {
		if at := s.findExtended(name, keys); at != "" {
			return at
		}
	}
	if bestRank == 0 {
		return ""
	}
	return fmt.Sprintf("%s:%d", best, bestLine)
}

// findExtended looks where find does, in the services that the one in keys extends.
func (s *scan) findExtended(name string, keys []string) string {
	if s.following >= maxExtends {
		return ""
	}
	s.following++
	defer func() { s.following-- }()
	for _, path := range s.order {
		for _, doc := range s.docs[path] {
			n := at(doc, []string{keys[0], keys[1], "extends"})
			if n == nil {
				continue
			}
			base := n.Value
			if n.Kind == yaml.MappingNode {
				if service := at(n, []string{"service"}); service != nil {
					base = service.Value
				}
			}
			if base == "" || base == keys[1] && n.Kind != yaml.MappingNode {
				continue
			}
			if found := s.find(name, append([]string{keys[0], base}, keys[2:]...)...); found != "" {
				return found
			}
		}
	}
	return ""
}

// How well a place fits.
const (
	foundKey  = 1
	foundName = 2
)

// lineOf returns the line of one document where name stands at keys.
func (s *scan) lineOf(doc *yaml.Node, name string, keys []string) (line, rank int) {
	n := at(doc, keys)
	if n == nil {
		return 0, 0
	}
	if name != "" {
		if found := s.says(n, name); found != nil {
			return found.Line, foundName
		}
	}
	return n.Line, foundKey
}

// says returns the first node below n that says name: as a whole, or as one of the
// parts that colons, commas and = separate.
func (s *scan) says(n *yaml.Node, name string) *yaml.Node {
	switch n.Kind {
	case yaml.AliasNode:
		return s.says(n.Alias, name)
	case yaml.ScalarNode:
		value, err := template.Substitute(n.Value, s.lookup)
		if err != nil {
			value = n.Value
		}
		separators := func(r rune) bool { return strings.ContainsRune(":,=", r) }
		if value == name || n.Value == name || slices.Contains(strings.FieldsFunc(value, separators), name) {
			return n
		}
		return nil
	}
	for _, c := range n.Content {
		if found := s.says(c, name); found != nil {
			return found
		}
	}
	return nil
}

// at returns the node at keys, through aliases and merge keys; nil for none.
func at(n *yaml.Node, keys []string) *yaml.Node {
	switch {
	case n.Kind == yaml.AliasNode:
		return at(n.Alias, keys)
	case n.Kind == yaml.DocumentNode && len(n.Content) > 0:
		return at(n.Content[0], keys)
	case len(keys) == 0:
		return n
	case n.Kind == yaml.SequenceNode: // of merge keys
		for _, c := range n.Content {
			if found := at(c, keys); found != nil {
				return found
			}
		}
		return nil
	case n.Kind != yaml.MappingNode:
		return nil
	}
	var merged *yaml.Node
	for i := 0; i+1 < len(n.Content); i += 2 {
		switch key := scalar(n.Content[i]); {
		case key == keys[0]:
			return at(n.Content[i+1], keys[1:])
		case key == "<<" && merged == nil:
			merged = at(n.Content[i+1], keys)
		}
	}
	return merged
}
