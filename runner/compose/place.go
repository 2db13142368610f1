package compose

import (
	"path"
	"path/filepath"
	"reflect"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
)

// Where the files of a project lie, below the working directory. Containers mount
// from projectsDir/PROJECT and from nowhere else.
const (
	projectsDir = "projects"
	// projectDir is, below it, the project directory of Compose: what "./data" of a
	// Compose file starts at. It lasts, whatever the releases call theirs.
	projectDir = "project"
	// besideDir holds what releases have beside the directory of their Compose file.
	besideDir = "beside"
)

// layout tells where the files of a bundle lie when they are laid out.
type layout struct {
	sub string // the bundle's directory with the Compose file, "." for its root
}

// place returns where the file name of a bundle goes, below projectsDir/PROJECT; ""
// for the directories above the project directory, which go nowhere. Both are
// clean, slash-separated and relative.
func (l layout) place(name string) string {
	switch {
	case l.sub == ".":
		return path.Join(projectDir, name)
	case name == l.sub:
		return projectDir
	case strings.HasPrefix(name, l.sub+"/"):
		return path.Join(projectDir, name[len(l.sub)+1:])
	case name == "." || strings.HasPrefix(l.sub, name+"/"):
		return ""
	default:
		return path.Join(besideDir, name)
	}
}

// target returns what a symbolic link at name, whose target is a relative one that
// stays inside the bundle, has to point to when it is laid out.
func (l layout) target(name, target string) string {
	leadsTo := path.Join(path.Dir(name), target)
	from, to := l.place(name), l.place(leadsTo)
	if to == "" || topOf(from) == topOf(to) {
		return target
	}
	rel, err := filepath.Rel(path.Dir(from), to)
	if err != nil {
		return target
	}
	return rel
}

// projectPath returns the directory in which the files of the project are laid out.
func (s *store) projectPath(project string) string {
	return filepath.Join(s.dir, projectsDir, project)
}

// hostPath returns which path of the host a path outside of the bundle at dir is: what
// is beside the bundle is beside the project directory.
func (s *store) hostPath(path, dir, project string) string {
	return layout{"."}.relocated(path, dir, s.projectPath(project))
}

// topOf returns the first component of a path.
func topOf(name string) string {
	top, _, _ := strings.Cut(name, "/")
	return top
}

// relocate makes p, which was loaded from the bundle kept at dir, refer to the
// directory to, where the bundle's files are laid out. What is built from source
// goes on to refer to the bundle. Strings that hold paths are replaced wherever they
// are: ${PWD} may be anywhere.
func relocate(p *types.Project, dir string, l layout, to string) {
	move := func(s string) string { return l.relocated(s, dir, to) }
	relocateValue(reflect.ValueOf(p).Elem(), move)
}

// relocated replaces every path within s that lies in the bundle at dir, or beside
// it: "../x" of a Compose file at the bundle's root.
func (l layout) relocated(s, dir, to string) string {
	parent := filepath.Dir(dir)
	var b strings.Builder
	for {
		i := strings.Index(s, parent)
		if i < 0 {
			return b.String() + s
		}
		b.WriteString(s[:i])
		s = s[i:]
		rest, ok := cutPath(s, dir)
		switch {
		case !ok:
			if rest, ok = cutPath(s, parent); !ok { // another directory, whose name begins alike
				b.WriteString(parent)
				s = s[len(parent):]
				continue
			}
			b.WriteString(to)
		case l.sub == ".":
			b.WriteString(filepath.Join(to, projectDir))
		default:
			if below, ok := cutPath(rest, "/"+l.sub); ok {
				b.WriteString(filepath.Join(to, projectDir))
				rest = below
			} else {
				b.WriteString(filepath.Join(to, besideDir))
			}
		}
		s = rest
	}
}

// cutPath returns what follows the path prefix in s, if s begins with that path and
// not with a longer name.
func cutPath(s, prefix string) (rest string, ok bool) {
	rest, ok = strings.CutPrefix(s, prefix)
	if !ok || rest != "" && strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", rune(rest[0])) {
		return "", false
	}
	return rest, true
}

var buildConfig = reflect.TypeFor[types.BuildConfig]()

// relocateValue has move replace every string in v, which can be set.
func relocateValue(v reflect.Value, move func(string) string) {
	switch v.Kind() {
	case reflect.String:
		if v.CanSet() {
			v.SetString(move(v.String()))
		}
	case reflect.Pointer:
		if !v.IsNil() && v.Type().Elem() != buildConfig {
			relocateValue(v.Elem(), move)
		}
	case reflect.Interface:
		if !v.IsNil() && v.CanSet() {
			inner := reflect.New(v.Elem().Type()).Elem()
			inner.Set(v.Elem())
			relocateValue(inner, move)
			v.Set(inner)
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if field := v.Field(i); field.CanSet() {
				relocateValue(field, move)
			}
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			relocateValue(v.Index(i), move)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			value := reflect.New(v.Type().Elem()).Elem()
			value.Set(v.MapIndex(key))
			relocateValue(value, move)
			v.SetMapIndex(key, value)
		}
	}
}
