package deploy

import (
	"errors"
	"fmt"

	"go.yaml.in/yaml/v3"
)

// MaxYAMLDepth bounds how deep maps and lists of a release nest. The time of those
// who read them grows with its square, or worse.
const MaxYAMLDepth = 100

// YAMLBounds is what is left of the number of values that a release's YAML may hold
// once its aliases are expanded.
type YAMLBounds struct{ Values int }

// Check takes the values of n from what is left, and refuses too many of them, and
// those that nest too deep.
func (b *YAMLBounds) Check(n *yaml.Node) error { return b.check(n, 0) }

func (b *YAMLBounds) check(n *yaml.Node, depth int) error {
	if b.Values--; b.Values < 0 {
		return errors.New("it holds too many values once its YAML aliases are expanded")
	}
	if depth > MaxYAMLDepth {
		return fmt.Errorf("line %d: maps and lists nest deeper than %d levels", n.Line, MaxYAMLDepth)
	}
	if n.Kind == yaml.AliasNode {
		return b.check(n.Alias, depth+1)
	}
	for i, c := range n.Content {
		if n.Kind == yaml.MappingNode && i%2 == 0 && c.Kind == yaml.ScalarNode {
			continue // a key
		}
		if err := b.check(c, depth+1); err != nil {
			return err
		}
	}
	return nil
}
