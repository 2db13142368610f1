package staging

import (
	"crypto/sha256"
	"encoding/hex"
	"strings"
	"time"

	"github.com/wrktalk/wrktalk-agent/internal/task"
)

// Name returns the name of a task's directory: when it was claimed, what it
// does, to which release, and the first characters of the task's id, such as
// 20261123T133915Z-deploy-2.5.0-1397f0f1. Whatever the row holds, the name is
// one plain path component of at most 100 bytes.
func Name(claimed time.Time, kind task.Kind, version string, id task.ID) string {
	parts := []string{claimed.UTC().Format("20060102T150405Z"), sanitize(string(kind), 16)}
	if v := sanitize(version, 48); v != "" {
		parts = append(parts, v)
	}
	return strings.Join(append(parts, shortID(id)), "-")
}

// sanitize keeps what is harmless in a file name and easy to type in a shell, at
// most limit bytes of it.
func sanitize(s string, limit int) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z', 'A' <= r && r <= 'Z', '0' <= r && r <= '9', r == '.', r == '_', r == '+', r == '-':
			return r
		default:
			return '_'
		}
	}, s)
	s = strings.TrimLeft(s, ".-")
	return s[:min(len(s), limit)]
}

// shortID is the beginning of an id that looks like a uuid, and of the digest
// of any other: as recognisable as it can be, and never empty.
func shortID(id task.ID) string {
	const n = 8
	if len(id) >= n {
		if _, err := hex.DecodeString(string(id[:n])); err == nil {
			return strings.ToLower(string(id[:n]))
		}
	}
	sum := sha256.Sum256([]byte(id))
	return hex.EncodeToString(sum[:n/2])
}
