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
)

// Limits of a chart on disk. Those in bytes are Helm's own for archives.
const (
	maxChartDepth = 40
	maxChartFiles = 20_000
)

const chartFile = "Chart.yaml"

// findChart returns the chart's directory, relative to the payload: chart/, the
// root, or the only first-level directory that holds a Chart.yaml.
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
	entries, err := fs.ReadDir(payload.FS(), ".")
	if err != nil {
		return "", fmt.Errorf("find the chart: %w", err)
	}
	var found []string
	for _, e := range entries {
		if is(e.Name()) {
			found = append(found, e.Name())
		}
	}
	switch len(found) {
	case 0:
		return "", errors.New("find the chart: the artifact holds no Chart.yaml, neither at its root nor in chart/ nor in another first-level directory")
	case 1:
		return found[0], nil
	default:
		return "", fmt.Errorf("find the chart: the artifact holds several (%s): keep one, or name it chart/", strings.Join(found, ", "))
	}
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
			return nil, fmt.Errorf("read .helmignore: %s", oneLine(err.Error()))
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
		return nil, fmt.Errorf("load the chart: %s", oneLine(err.Error()))
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
			return fmt.Errorf("chart %s is incomplete: %s: run `helm dependency build` before packing it, nothing is downloaded here", c.Name(), oneLine(err.Error()))
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
			r.files = append(r.files, &loader.BufferedFile{Name: name, Data: data})
		}
	}
	return nil
}

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
