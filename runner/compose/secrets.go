package compose

import (
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"github.com/wrktalk/wrktalk-agent/internal/mask"
	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// maxSecretFile bounds what of a secret's or config's file is learned, in bytes.
const maxSecretFile = 256 << 10

// learnSecrets has the report hide what of p must not show beside the row's env:
// what secrets hold, and what looks like a secret, by name or by itself, in the
// environment, the arguments and the labels of services and in configs. The names
// that sentences about p are made of stay readable.
func learnSecrets(report *deploy.Report, p *types.Project) {
	var secrets []map[string]string
	learn := func(found ...map[string]string) { secrets = append(secrets, found...) }
	for name, object := range p.Secrets {
		text := contentOf(p, types.FileObjectConfig(object))
		learn(map[string]string{"secrets." + name: text}, mask.Pairs(text))
	}
	for _, object := range p.Configs {
		learn(mask.Pairs(contentOf(p, types.FileObjectConfig(object))))
	}
	for _, s := range p.Services {
		found := map[string]string{}
		for name, value := range s.Environment {
			if value != nil {
				mask.Literal(found, name, *value)
			}
		}
		for name, value := range s.Labels {
			mask.Literal(found, name, value)
		}
		if s.Build != nil {
			for name, value := range s.Build.Args {
				if value != nil {
					mask.Literal(found, name, *value)
				}
			}
		}
		learn(found, mask.Arguments(s.Command), mask.Arguments(s.Entrypoint))
		if s.HealthCheck != nil {
			learn(mask.Arguments(healthArguments(s.HealthCheck.Test)))
		}
		for _, hook := range slices.Concat(s.PostStart, s.PreStop) {
			learn(mask.Arguments(hook.Command))
		}
	}
	report.Common(commonNames(p)...)
	report.Learn(secrets...)
}

// healthArguments returns the words of a health check, which may be a shell's line.
func healthArguments(test []string) []string {
	if len(test) == 2 && test[0] == "CMD-SHELL" {
		return strings.Fields(test[1])
	}
	return test
}

// contentOf returns what a secret or config holds, as far as it can be read.
func contentOf(p *types.Project, object types.FileObjectConfig) string {
	switch {
	case object.Content != "":
		return object.Content
	case object.Environment != "":
		return p.Environment[object.Environment]
	case object.File == "":
		return ""
	}
	info, err := os.Stat(object.File)
	if err != nil || !info.Mode().IsRegular() {
		return "" // what is missing is said elsewhere
	}
	f, err := os.Open(object.File)
	if err != nil {
		return ""
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxSecretFile))
	if err != nil {
		return ""
	}
	return string(data)
}

// commonNames are the words that sentences about p are made of. None of them can
// come from the row's env, but parts of an image's name.
func commonNames(p *types.Project) []string {
	names := slices.Concat([]string{p.Name}, p.ServiceNames(), p.NetworkNames(), p.VolumeNames())
	for name, s := range p.Services {
		names = append(names, fmt.Sprintf("%s-%s-1", p.Name, name))
		for part := range strings.SplitSeq(s.Image, "/") {
			if part, _, _ = strings.Cut(part, ":"); imagePart.MatchString(part) && !mask.ShapedSecret(part) {
				names = append(names, part)
			}
		}
	}
	return names
}

// imagePart is a part of an image's name that is made of words.
var imagePart = regexp.MustCompile(`^[a-z]+([-_.]?[a-z]+[0-9]{0,2})*$`)
