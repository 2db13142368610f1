package config

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/BurntSushi/toml"
)

// maxFile is the largest configuration file that is read, in bytes.
const maxFile = 1 << 20

// readFile takes the keys from the configuration file.
func (l *loader) readFile() {
	path, must := l.src.File, true
	if path == "" {
		path = l.env[fileVariable]
	}
	if path == "" {
		path, must = cmp.Or(l.src.systemFile, systemFile), false
	}
	content, mode, err := readFile(path, maxFile)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return
	}
	if err == nil && len(content) > maxFile {
		err = fmt.Errorf("%s is larger than %s", path, formatSize(maxFile))
	}
	if err != nil {
		l.fileBroken = true
		l.report("read configuration file: %w", err)
		return
	}
	l.file = path

	data := string(content)
	var tables map[string]toml.Primitive
	md, err := toml.Decode(data, &tables)
	if err != nil {
		l.fileBroken = true
		l.report("%w", syntaxError(path, data, err))
		return
	}
	for _, section := range inOrder(md, tables) {
		value, line := locate(md, tables[section])
		where := fmt.Sprintf("%s:%d", path, line)
		if _, ok := value.(map[string]any); !ok {
			l.report("%s: there is no key %q outside the sections%s", where, section, suggestKey(section))
			continue
		}
		if !slices.Contains(sections(), section) {
			hint := suggest(section, sections())
			if hint == "" {
				hint = ": there are " + strings.Join(sections(), ", ")
			}
			l.report("%s: there is no section [%s]%s", where, section, hint)
			continue
		}
		var values map[string]toml.Primitive
		if err := md.PrimitiveDecode(tables[section], &values); err != nil {
			l.report("%s: cannot read section [%s]", where, section)
			continue
		}
		for _, name := range inOrder(md, values, section) {
			l.takeFromFile(md, section+"."+name, values[name])
		}
	}
	secret := func(k key) bool {
		e := l.found[k.name]
		return k.kind == kindSecret && !e.text.Empty() && strings.HasPrefix(e.source, "file ")
	}
	if mode&0o004 != 0 && slices.ContainsFunc(keys, secret) {
		l.warn("%s holds a secret and every user may read it: chmod o-r it", path)
	}
}

func (l *loader) takeFromFile(md toml.MetaData, name string, primitive toml.Primitive) {
	value, line := locate(md, primitive)
	where := fmt.Sprintf("%s:%d", l.file, line)
	i := lookup(name)
	if i < 0 {
		l.report("%s: there is no key %s%s", where, name, suggestKey(name))
		return
	}
	text, err := tomlText(keys[i].kind, value)
	if err != nil {
		l.report("%s: cannot use the value of %s: %w", where, name, err)
		return
	}
	l.found[name] = entry{newSecret(text), "file " + where}
}

// readFile returns the file's content and permissions. Of a file that is larger
// than most bytes it returns one byte more than that.
func readFile(path string, most int64) ([]byte, fs.FileMode, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, 0, err
	}
	content, err := io.ReadAll(io.LimitReader(f, most+1))
	return content, info.Mode(), err
}

// inOrder returns the names of m in the file's order, so that problems are told
// from top to bottom.
func inOrder(md toml.MetaData, m map[string]toml.Primitive, parent ...string) []string {
	var order []string
	for _, k := range md.Keys() {
		if len(k) > len(parent) && slices.Equal(k[:len(parent)], parent) {
			if name := k[len(parent)]; !slices.Contains(order, name) {
				order = append(order, name)
			}
		}
	}
	return slices.DeleteFunc(order, func(name string) bool { _, ok := m[name]; return !ok })
}

// locator is how a value's line is learnt: the library keeps it to itself, save
// in the error it makes of one that UnmarshalTOML returns.
type locator struct{ value any }

var errLocate = errors.New("locate")

func (l *locator) UnmarshalTOML(value any) error {
	l.value = value
	return errLocate
}

// locate returns the value and the line where it stands.
func locate(md toml.MetaData, primitive toml.Primitive) (value any, line int) {
	var l locator
	var parseError toml.ParseError
	if err := md.PrimitiveDecode(primitive, &l); errors.As(err, &parseError) {
		line = parseError.Position.Line
	}
	return l.value, line
}

// tomlText returns value as the text that the environment would hold for it.
func tomlText(k kind, value any) (string, error) {
	switch v := value.(type) {
	case string:
		return v, nil
	case int64:
		if k == kindNumber || k == kindDuration || k == kindSize || k == kindList {
			return strconv.FormatInt(v, 10), nil
		}
	case bool:
		if k == kindBoolean {
			return strconv.FormatBool(v), nil
		}
	case []any:
		if k == kindList {
			texts := make([]string, len(v))
			for i, one := range v {
				if _, nested := one.([]any); nested {
					return "", errors.New("want text in quotes, or a list of them")
				}
				text, err := tomlText(kindList, one)
				if err != nil {
					return "", err
				}
				texts[i] = text
			}
			return strings.Join(texts, ","), nil
		}
	}
	switch k {
	case kindNumber:
		return "", errors.New("want a whole number")
	case kindBoolean:
		return "", errors.New("want true or false")
	case kindDuration, kindSize:
		return "", errors.New("want a whole number, or text in quotes")
	case kindList:
		return "", errors.New("want text in quotes, or a list of them")
	default:
		return "", errors.New("want text in quotes")
	}
}

// syntaxError says where the file is no TOML. The library's own words quote
// what it stumbled over, which may be a password somebody forgot to put in
// quotes; they are passed on only where none can stand.
func syntaxError(path, data string, err error) error {
	var e toml.ParseError
	if !errors.As(err, &e) {
		return fmt.Errorf("%s: not valid TOML", path)
	}
	i := lookup(e.LastKey)
	harmless := i >= 0 && keys[i].kind != kindSecret
	if lines := strings.Split(data, "\n"); e.Position.Line >= 1 && e.Position.Line <= len(lines) {
		line := strings.ToLower(lines[e.Position.Line-1])
		harmless = harmless && !strings.Contains(line, "password") && !strings.Contains(line, "://")
		harmless = harmless || strings.HasPrefix(strings.TrimSpace(line), "[")
	}
	if harmless {
		return fmt.Errorf("%s:%d: not valid TOML: %s", path, e.Position.Line, e.Message)
	}
	return fmt.Errorf("%s:%d: not valid TOML: want [section] and name = value lines, with text in quotes", path, e.Position.Line)
}
