//go:build faultinject

package fault

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
)

// Enabled tells whether this build injects faults.
const Enabled = true

var (
	mu   sync.Mutex
	hook = fromEnv()
)

// Point marks the step named by label as about to happen, and returns the error
// the step is to fail with, nil to go on. It does not return from a kill.
func Point(label string) error {
	mu.Lock()
	defer mu.Unlock()
	if hook == nil {
		return nil
	}
	return hook(label)
}

// Set makes f decide about every label in this process, in place of the
// environment, until restore is called. Calls of f are serialised; f must not
// pass a Point itself.
func Set(f func(label string) error) (restore func()) {
	mu.Lock()
	defer mu.Unlock()
	previous := hook
	hook = f
	return func() {
		mu.Lock()
		defer mu.Unlock()
		hook = previous
	}
}

func fromEnv() func(string) error {
	spec := os.Getenv(EnvVar)
	if spec == "" {
		return nil
	}
	p, err := parse(spec)
	if err != nil {
		panic(fmt.Sprintf("read %s: %v", EnvVar, err))
	}
	return p.point
}

// plan is what one value of WRKTALK_FAULT asks for.
type plan struct {
	rules []*rule
	once  string // file whose exclusive creation permits acting
	trace string // file that collects the labels
}

type rule struct {
	verb    string // kill, fail, full
	pattern string
	at      int // acts at this match; 0 is every match
	seen    int
}

func parse(spec string) (*plan, error) {
	p := &plan{}
	for item := range strings.SplitSeq(spec, ";") {
		item = strings.TrimSpace(item)
		if name, ok := strings.CutPrefix(item, "once="); ok {
			p.once = name
			continue
		}
		name, ok := strings.CutPrefix(item, "trace=")
		if !ok {
			name, ok = strings.CutPrefix(item, "trace:")
		}
		if ok {
			p.trace = name
			continue
		}
		r, err := parseRule(item)
		if err != nil {
			return nil, err
		}
		p.rules = append(p.rules, r)
	}
	return p, nil
}

// parseRule reads VERB:PATTERN:N; the pattern may contain colons.
func parseRule(item string) (*rule, error) {
	verb, rest, _ := strings.Cut(item, ":")
	cut := strings.LastIndexByte(rest, ':')
	if cut <= 0 || (verb != "kill" && verb != "fail" && verb != "full") {
		return nil, fmt.Errorf("instruction %q is none of kill:PATTERN:N, fail:PATTERN:N, full:PATTERN:N, once=FILE, trace=FILE", item)
	}
	n, err := strconv.Atoi(rest[cut+1:])
	if err != nil || n < 0 {
		return nil, fmt.Errorf("instruction %q: N must be a number from 0", item)
	}
	return &rule{verb: verb, pattern: rest[:cut], at: n}, nil
}

func (p *plan) point(label string) error {
	if p.trace != "" {
		appendTo(p.trace, label)
	}
	var failed error
	for _, r := range p.rules {
		if !match(r.pattern, label) {
			continue
		}
		r.seen++
		if r.at != 0 && r.seen != r.at || !p.permitted() {
			continue
		}
		switch r.verb {
		case "kill":
			// Through the system call, so that no deferred function and no
			// buffered write gets a chance a power loss would not give it.
			_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
			select {}
		case "fail":
			failed = fmt.Errorf("inject at %s: %w", label, syscall.EIO)
		case "full":
			failed = fmt.Errorf("inject at %s: %w", label, syscall.ENOSPC)
		}
	}
	return failed
}

// permitted reports whether this process may act, and uses the permission up.
func (p *plan) permitted() bool {
	if p.once == "" {
		return true
	}
	f, err := os.OpenFile(p.once, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return false
	}
	return f.Close() == nil
}

// appendTo writes each label with one call, so that processes may share a file.
func appendTo(name, label string) {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = f.WriteString(label + "\n")
		if cerr := f.Close(); err == nil {
			err = cerr
		}
	}
	if err != nil {
		panic(fmt.Sprintf("trace labels: %v", err))
	}
}

// match reports whether the whole of s fits pattern.
func match(pattern, s string) bool {
	for pattern != "" {
		switch {
		case pattern[0] == '*':
			for i := 0; i <= len(s); i++ {
				if match(pattern[1:], s[i:]) {
					return true
				}
			}
			return false
		case s == "" || pattern[0] != '?' && pattern[0] != s[0]:
			return false
		}
		pattern, s = pattern[1:], s[1:]
	}
	return s == ""
}
