package helm

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/ignore"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// Limits of a chart on disk. Those in bytes are Helm's own for archives.
const (
	maxChartDepth = 40
	maxChartFiles = 20_000
)

const chartFile = "Chart.yaml"

// findChart returns the chart's directory, relative to the payload: chart/, the
// root, or the only one of the first-level directories, else of the second-level
// ones, that holds a Chart.yaml. Hidden directories count where there is no other.
// Without any it is the only chart there that `helm package` packed.
func findChart(payload *os.Root) (string, error) {
	is := func(dir string) bool {
		info, err := payload.Stat(path.Join(dir, chartFile))
		return err == nil && info.Mode().IsRegular()
	}
	for _, dir := range []string{"chart", "."} {
		if is(dir) {
			return dir, nil
		}
	}
	level := []string{"."}
	var packed []string
	for range 2 {
		var below, found, hidden []string
		for _, dir := range level {
			entries, err := fs.ReadDir(payload.FS(), dir)
			if err != nil {
				return "", fmt.Errorf("find the chart: %w", err)
			}
			for _, e := range entries {
				name := path.Join(dir, e.Name())
				switch {
				case is(name) && (strings.HasPrefix(name, ".") || strings.Contains(name, "/.")):
					hidden = append(hidden, name)
				case is(name):
					found = append(found, name)
				case e.IsDir():
					below = append(below, name)
				case isPacked(name) && e.Type().IsRegular():
					packed = append(packed, name)
				}
			}
		}
		if len(found) == 0 {
			found = hidden
		}
		if len(found) > 0 {
			return onlyChart(found)
		}
		level = below
	}
	if len(packed) > 0 {
		return onlyChart(packed)
	}
	return "", errors.New("find the chart: the artifact holds no Chart.yaml, neither at its root nor in chart/ nor in another directory of its first two levels" + deeper(payload.FS()))
}

// onlyChart returns the one chart that was found, and refuses to choose.
func onlyChart(found []string) (string, error) {
	if len(found) > 1 {
		return "", fmt.Errorf("find the chart: the artifact holds several (%s): store one alone, or name the one to deploy chart/ and put what it needs into its charts/", strings.Join(found, ", "))
	}
	return found[0], nil
}

// isPacked reports whether a file has the name of a packed chart. Hidden files, such
// as what macOS keeps beside one, have not.
func isPacked(name string) bool {
	return !strings.HasPrefix(path.Base(name), ".") && (strings.HasSuffix(name, ".tgz") || strings.HasSuffix(name, ".tar.gz"))
}

// deeper says where below the first level a chart lies, as the end of a sentence;
// "" for nowhere.
func deeper(payload fs.FS) string {
	var where string
	seen := 0
	_ = fs.WalkDir(payload, ".", func(name string, e fs.DirEntry, err error) error {
		if seen++; err != nil || seen > maxChartFiles {
			return fs.SkipAll // it is only a hint
		}
		if path.Base(name) == chartFile || isPacked(name) {
			where = path.Dir(name)
			return fs.SkipAll
		}
		return nil
	})
	if where == "" {
		return ""
	}
	return fmt.Sprintf(": there is one in %s, so pack that directory", where)
}

// loadChart loads the chart of a payload. Helm's own loader is not used: it
// follows symbolic links out of the chart (CVE-2025-53547).
func loadChart(payloadDir string) (*chart.Chart, error) {
	payload, err := os.OpenRoot(payloadDir)
	if err != nil {
		return nil, fmt.Errorf("open the artifact: %w", err)
	}
	defer payload.Close()
	dir, err := findChart(payload)
	if err != nil {
		return nil, err
	}
	if isPacked(dir) {
		return loadPacked(payload, dir)
	}
	// Opened before it is looked into, so that links inside are bounded by the
	// chart, not by the artifact.
	root, err := payload.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("open the chart: %w", err)
	}
	defer root.Close()
	r := &reader{root: root, rules: ignore.Empty(), left: loader.MaxDecompressedChartSize}
	if data, err := r.readFile(ignore.HelmIgnore); err == nil {
		if r.rules, err = ignore.Parse(bytes.NewReader(data)); err != nil {
			return nil, fmt.Errorf("read .helmignore: %s", deploy.OneLine(err.Error()))
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r.rules.AddDefaults()
	if err := r.read(".", 0); err != nil {
		return nil, err
	}
	// In the order Helm reads a directory: what it renders must not depend on
	// who loaded it.
	slices.SortFunc(r.files, func(a, b *loader.BufferedFile) int { return strings.Compare(a.Name, b.Name) })
	c, err := loader.LoadFiles(r.files)
	if err != nil {
		return nil, fmt.Errorf("load the chart: %s", deploy.OneLine(err.Error()))
	}
	return c, checkInstallable(c)
}

// loadPacked loads a chart that `helm package` packed.
func loadPacked(payload *os.Root, name string) (*chart.Chart, error) {
	f, err := payload.Open(name)
	if err != nil {
		return nil, fmt.Errorf("open the chart: %w", err)
	}
	defer f.Close()
	c, err := loader.LoadArchive(f)
	if err != nil {
		return nil, fmt.Errorf("load the chart of %s: %s", name, deploy.OneLine(err.Error()))
	}
	return c, checkInstallable(c)
}

// checkInstallable refuses what `helm upgrade --install` refuses.
func checkInstallable(c *chart.Chart) error {
	if t := c.Metadata.Type; t != "" && t != "application" {
		return fmt.Errorf("chart %s is of type %q, which cannot be installed", c.Name(), t)
	}
	if req := c.Metadata.Dependencies; req != nil {
		if err := action.CheckDependencies(c, req); err != nil {
			return fmt.Errorf("chart %s is incomplete: %s: run `helm dependency build` before packing it, nothing is downloaded here", c.Name(), deploy.OneLine(err.Error()))
		}
	}
	return nil
}

// reader collects the files of a chart.
type reader struct {
	root  *os.Root
	rules *ignore.Rules
	files []*loader.BufferedFile
	seen  int
	left  int64 // bytes
}

// read collects what lies below dir. Links are followed as far as they stay
// inside the chart: os.Root refuses the others.
func (r *reader) read(dir string, depth int) error {
	if depth > maxChartDepth {
		return fmt.Errorf("load the chart: %s lies deeper than %d directories", dir, maxChartDepth)
	}
	d, err := r.root.Open(dir)
	if err != nil {
		return fmt.Errorf("load the chart: %w", err)
	}
	names, err := d.Readdirnames(-1)
	if err := errors.Join(err, d.Close()); err != nil {
		return fmt.Errorf("load the chart: %w", err)
	}
	for _, base := range names {
		name := path.Join(dir, base)
		if r.seen++; r.seen > maxChartFiles {
			return fmt.Errorf("load the chart: it has more than %d files", maxChartFiles)
		}
		info, err := r.root.Stat(name)
		if err != nil {
			if link, _ := r.root.Lstat(name); link != nil && link.Mode()&fs.ModeSymlink != 0 {
				return fmt.Errorf("load the chart: %s is a symbolic link that leads out of the chart or nowhere", name)
			}
			return fmt.Errorf("load the chart: %w", err)
		}
		switch {
		case r.rules.Ignore(name, info):
		case info.IsDir():
			if err := r.read(name, depth+1); err != nil {
				return err
			}
		case !info.Mode().IsRegular():
			return fmt.Errorf("load the chart: %s is neither a file nor a directory", name)
		default:
			data, err := r.readFile(name)
			if err != nil {
				return err
			}
			if slices.Contains(chartYAML, base) {
				if err := checkYAML(data); err != nil {
					return fmt.Errorf("load the chart: %s: %w", name, err)
				}
			}
			r.files = append(r.files, &loader.BufferedFile{Name: name, Data: data})
		}
	}
	return nil
}

// chartYAML are the files of a chart that are read as YAML before it is rendered.
var chartYAML = []string{chartFile, "values.yaml", "requirements.yaml", "Chart.lock", "requirements.lock"}

var utf8BOM = []byte{0xEF, 0xBB, 0xBF}

// readFile reads a file within the limits.
func (r *reader) readFile(name string) ([]byte, error) {
	f, err := r.root.Open(name)
	if err != nil {
		return nil, fmt.Errorf("load the chart: %w", err)
	}
	defer f.Close()
	limit := min(loader.MaxDecompressedFileSize, r.left)
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("load the chart: %w", err)
	case int64(len(data)) > loader.MaxDecompressedFileSize:
		return nil, fmt.Errorf("load the chart: %s is larger than %d bytes: list it in .helmignore, or leave it out", name, loader.MaxDecompressedFileSize)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("load the chart: it is larger than %d bytes", loader.MaxDecompressedChartSize)
	}
	r.left -= int64(len(data))
	return bytes.TrimPrefix(data, utf8BOM), nil
}
