package testenv

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func TestDocBlocks(t *testing.T) {
	t.Parallel()
	page := "# One\n\ntext\n\n    a \\\n      b\n\n    c\n\ntext\n    of a paragraph\n## Two\n\n1. item\n\n       d\n\n```sql\n\n    e\n```\n\n    f\n"
	want := []DocBlock{{"One", 0, "a \\\n  b\n\nc\n"}, {"Two", 0, "d\n"}, {"Two", 1, "f\n"}}
	if got := DocBlocks(page); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// Each block of the pages is run, or compared with what the program prints, by a test
// that asks for it with Doc.
func TestEveryDocBlockIsTested(t *testing.T) {
	t.Parallel()
	root, err := goList(context.Background(), "{{.Dir}}", productModule)
	if err != nil {
		t.Fatal(err)
	}
	tested := docCalls(t, root)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range append(pages, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		page, err := filepath.Rel(root, path)
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range DocBlocks(string(text)) {
			if !tested[fmt.Sprintf("%s: %s: %d", page, b.Section, b.Number)] {
				t.Errorf("no test asks for block %d under %q of %s:\n%s", b.Number, b.Section, page, b.Text)
			}
		}
	}
}

// docCalls returns what the project's code asks Doc for, as page, section and number.
func docCalls(t *testing.T, root string) map[string]bool {
	t.Helper()
	calls := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		ast.Inspect(file, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 4 {
				return true
			}
			if f, ok := call.Fun.(*ast.SelectorExpr); !ok || f.Sel.Name != "Doc" {
				return true
			}
			var values []string
			for _, arg := range call.Args[1:4] {
				if lit, ok := arg.(*ast.BasicLit); ok {
					value, err := strconv.Unquote(lit.Value)
					if err != nil {
						value = lit.Value // a number
					}
					values = append(values, value)
				}
			}
			calls[strings.Join(values, ": ")] = true
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return calls
}
