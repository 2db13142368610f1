package unpack

import (
	"path"
	"strings"
)

const (
	leaves = "leaves the artifact"

	maxLinks = 40      // links followed one behind the other, as the kernel has it
	maxSteps = 1 << 20 // components looked up for all links together
)

// makeClimbing makes the links whose targets go down and climb again, or refuses
// one that leaves the artifact: a/up/../.. is outside when a/up is a link to the
// root.
func (x *extraction) makeClimbing() error {
	steps := 0
	for _, i := range x.climbing {
		f := x.files[i]
		if bad := x.follow(f, &steps); bad != "" {
			return refuse(f.Path, "is a symbolic link to %q, which %s", shorten(f.Target), bad)
		}
	}
	for _, i := range x.climbing {
		if err := x.makeLink(&x.files[i]); err != nil {
			return err
		}
	}
	return nil
}

// follow says what is bad about where the link f leads: "" for nothing. A target
// that is not there is taken by its name, as for other links.
func (x *extraction) follow(f File, steps *int) (bad string) {
	at := path.Dir(f.Path)
	rest := []string{f.Target} // to be walked, the last one first
	for links := 0; len(rest) > 0; {
		part, more, _ := strings.Cut(rest[len(rest)-1], "/")
		rest = rest[:len(rest)-1]
		if more != "" {
			rest = append(rest, more)
		}
		if *steps++; *steps > maxSteps {
			return "takes too long to follow"
		}
		switch part {
		case "", ".":
			continue
		case "..":
			if at == "." {
				return leaves
			}
			at = path.Dir(at)
			continue
		}
		at = path.Join(at, part)
		i, ok := x.index[at]
		if !ok || x.files[i].Type != TypeSymlink {
			continue
		}
		if links++; links > maxLinks {
			return "leads through too many links, or in a circle"
		}
		at = path.Dir(at)
		rest = append(rest, x.files[i].Target)
	}
	return ""
}
