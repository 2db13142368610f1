package operator

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"unicode"

	"github.com/wrktalk/wrktalk-agent/internal/taskdb"
)

// CheckVersion refuses a version that a release cannot be stored under. Names of files
// and labels are made of versions, and people type them.
func CheckVersion(version string) error {
	const most = 100
	switch {
	case len(version) > most:
		return fmt.Errorf("version %.20q… is too long: a version has up to %d characters", version, most)
	case version == "" || strings.ContainsFunc(version, unfit) || strings.ContainsAny(version[:1], marks):
		return fmt.Errorf("%q is no version: one begins with a letter or digit, and has letters, digits and . _ + ~ - after it, such as 2.5.0-rc.1", version)
	}
	return nil
}

// marks are what a version may have beside letters and digits, other than at its
// beginning.
const marks = "._+~-"

func unfit(r rune) bool {
	return !unicode.IsLetter(r) && !unicode.IsNumber(r) && !strings.ContainsRune(marks, r)
}

// FindVersion returns the release that a person named by its version. When there is
// none the error names what there is.
func (c *Client) FindVersion(ctx context.Context, version string) (*taskdb.Artifact, error) {
	chart := c.Target.Chart()
	a, err := c.DB.ArtifactByVersion(ctx, chart, version)
	if !errors.Is(err, taskdb.ErrNotFound) {
		return a, err
	}
	known, err := c.DB.Versions(ctx, chart, 200)
	if err != nil {
		return nil, err
	}
	store := fmt.Sprintf("store it with wrktalk-agent push FILE --version %s", version)
	if CheckVersion(version) != nil {
		store = "store one with wrktalk-agent push"
	}
	switch near := nearest(version, known); {
	case len(known) == 0:
		return nil, fmt.Errorf("the database holds no %s release of version %q, and no other one: %s", chart, version, store)
	case near != "":
		return nil, fmt.Errorf("the database holds no %s release of version %q (did you mean %s?): %s", chart, version, near, store)
	default:
		return nil, fmt.Errorf("the database holds no %s release of version %q, the newest is %s: %s", chart, version, known[0], store)
	}
}

// nearest returns which of known somebody most likely meant by version: "" for none.
// Of several the first counts.
func nearest(version string, known []string) string {
	best, least := "", 1+max(1, len(version)/3)
	for _, k := range known {
		if strings.TrimLeft(strings.ToLower(k), "v") == strings.TrimLeft(strings.ToLower(version), "v") {
			return k
		}
		if d := distance(version, k); d < least {
			best, least = k, d
		}
	}
	return best
}

// distance is the least number of letters to insert, remove or replace in a to make it
// b.
func distance(a, b string) int {
	x, y := []rune(a), []rune(b)
	row := make([]int, len(y)+1)
	for j := range row {
		row[j] = j
	}
	for i := range x {
		diagonal := row[0]
		row[0] = i + 1
		for j := range y {
			cost := diagonal
			if x[i] != y[j] {
				cost++
			}
			diagonal = row[j+1]
			row[j+1] = min(cost, row[j]+1, row[j+1]+1)
		}
	}
	return row[len(y)]
}
