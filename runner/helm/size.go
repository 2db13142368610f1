package helm

import (
	"cmp"
	"compress/gzip"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/release"
)

const (
	// maxRecord is what a Secret may hold, in bytes. Helm keeps each revision in
	// one (helm#9788).
	maxRecord = 1 << 20
	// recordReserve is room for what is added to a record on its way: the times
	// of hooks, and why it failed. A record that could not be updated any more
	// would stay pending for ever.
	recordReserve = 16 << 10
)

// checkRecord refuses a release whose record would not fit.
func checkRecord(rel *release.Release) error {
	size, err := recordSize(rel)
	if err != nil {
		return fmt.Errorf("encode the release's record: %w", err)
	}
	if size <= maxRecord-recordReserve {
		return nil
	}
	return fmt.Errorf("the release is too large for Helm: its record would take %d bytes of the %d that a Secret may hold (%d are kept free): make the chart or the values smaller; %s",
		size, maxRecord, recordReserve, largest(rel))
}

// recordSize returns how many bytes Helm's record of rel takes: the release as
// JSON, compressed, in base64.
func recordSize(rel *release.Release) (int, error) {
	var n counter
	z, err := gzip.NewWriterLevel(&n, gzip.BestCompression)
	if err != nil {
		return 0, err
	}
	if err := json.NewEncoder(z).Encode(rel); err != nil {
		return 0, err
	}
	if err := z.Close(); err != nil {
		return 0, err
	}
	return base64.StdEncoding.EncodedLen(int(n)), nil
}

type counter int

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

// largest names what takes the most room, before compression.
func largest(rel *release.Release) string {
	type part struct {
		name string
		size int
	}
	parts := []part{{"the rendered manifest", len(rel.Manifest)}}
	if doc, err := json.Marshal(rel.Config); err == nil {
		parts = append(parts, part{"the row's values", len(doc)})
	}
	for _, h := range rel.Hooks {
		parts = append(parts, part{"hook " + h.Path, len(h.Manifest)})
	}
	var walk func(*chart.Chart)
	walk = func(c *chart.Chart) {
		for _, files := range [][]*chart.File{c.Templates, c.Files} {
			for _, f := range files {
				parts = append(parts, part{c.ChartFullPath() + "/" + f.Name, len(f.Data)})
			}
		}
		for _, d := range c.Dependencies() {
			walk(d)
		}
	}
	if rel.Chart != nil {
		walk(rel.Chart)
	}
	slices.SortStableFunc(parts, func(a, b part) int { return cmp.Compare(b.size, a.size) })
	var names []string
	for _, p := range parts[:min(3, len(parts))] {
		names = append(names, fmt.Sprintf("%s (%d bytes)", p.name, p.size))
	}
	return "uncompressed, the largest are " + strings.Join(names, ", ")
}
