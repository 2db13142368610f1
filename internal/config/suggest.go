package config

import (
	"slices"
	"strings"
)

// suggest returns `: did you mean "X"?` for the known name that is closest to
// the one given, or "" when none is close.
func suggest(given string, known []string) string {
	best, least := "", 1+max(1, min(3, len(given)/4))
	for _, name := range known {
		if d := distance(strings.ToLower(given), strings.ToLower(name)); d < least {
			best, least = name, d
		}
	}
	if best == "" {
		return ""
	}
	return `: did you mean "` + best + `"?`
}

// suggestKey is suggest for section.key, which may also be the right key in the
// wrong section or in none.
func suggestKey(given string) string {
	last := given[strings.LastIndex(given, ".")+1:]
	var names, same []string
	for _, k := range keys {
		names = append(names, k.name)
		if strings.HasSuffix(k.name, "."+last) {
			same = append(same, k.name)
		}
	}
	if s := suggest(given, names); s != "" {
		return s
	}
	if len(same) == 1 {
		return `: did you mean "` + same[0] + `"?`
	}
	return ""
}

// sections returns the names of the sections, in the table's order.
func sections() []string {
	var names []string
	for _, k := range keys {
		names = append(names, k.section())
	}
	return slices.Compact(names)
}

// distance returns how many single-character edits, or swaps of neighbours,
// make b of a.
func distance(a, b string) int {
	var before []int
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		next := make([]int, len(b)+1)
		next[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			next[j+1] = min(row[j]+cost, row[j+1]+1, next[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				next[j+1] = min(next[j+1], before[j-1]+1)
			}
		}
		before, row = row, next
	}
	return row[len(b)]
}
