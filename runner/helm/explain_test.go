package helm

import (
	"strings"
	"testing"
)

func TestWithoutDumps(t *testing.T) {
	big := `{"labels":{"a":"}"},"spec":` + strings.Repeat(`{"b":[1]},"c":`, 20) + `{}}`
	for in, want := range map[string]string{
		`Job.batch "job" is invalid: spec.template: Invalid value: ` + big + `: field is immutable`:      `Job.batch "job" is invalid: spec.template: Invalid value: {…}: field is immutable`,
		`x: Invalid value: core.PodTemplateSpec` + big + `: no; y: Invalid value: ` + big + `: nor that`: `x: Invalid value: {…}: no; y: Invalid value: {…}: nor that`,
		`spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated`:               `spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated`,
		`metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain`:                       `metadata.name: Invalid value: "Bad_Name": a lowercase RFC 1123 subdomain`,
		`[a: Invalid value: [` + big + `]: no, b: Invalid value: "x": nor that]`:                         `[a: Invalid value: {…}: no, b: Invalid value: "x": nor that]`,
		`a: Invalid value: {"short":1}: no`:                                                              `a: Invalid value: {"short":1}: no`,
		`a: Invalid value: {"never closed`:                                                               `a: Invalid value: {"never closed`,
		`nothing of the kind`:                                                                            `nothing of the kind`,
	} {
		if got := withoutDumps(in); got != want {
			t.Errorf("%s\nbecomes %s", in, got)
		}
	}
}
