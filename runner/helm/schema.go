package helm

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"github.com/santhosh-tekuri/jsonschema/v6"
	"helm.sh/helm/v3/pkg/chart"

	"github.com/wrktalk/wrktalk-agent/runner/deploy"
)

// checkSchemas refuses values schemas that refer to anything outside of
// themselves. Helm would read the file (CVE-2025-55199: /dev/zero, or a file whose
// content the error quotes) or fetch the address, with the agent's rights and
// from its network.
func checkSchemas(c *chart.Chart) error {
	if c.Schema != nil {
		if err := checkSchema(c.Schema); err != nil {
			return fmt.Errorf("the values schema of chart %s cannot be used: %s", c.Name(), deploy.OneLine(err.Error()))
		}
	}
	for _, d := range c.Dependencies() {
		if err := checkSchemas(d); err != nil {
			return err
		}
	}
	return nil
}

func checkSchema(text []byte) (err error) {
	defer func() { // as Helm does around the same library
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	doc, err := jsonschema.UnmarshalJSON(bytes.NewReader(text))
	if err != nil {
		return err
	}
	const self = "file:///values.schema.json" // the name Helm gives it
	compiler := jsonschema.NewCompiler()
	guard := &refusing{}
	compiler.UseLoader(guard)
	if err := compiler.AddResource(self, doc); err != nil {
		return err
	}
	// Compiling resolves every reference, so what passes here loads nothing in
	// Helm either.
	if _, err = compiler.Compile(self); guard.refused != nil {
		return guard.refused
	}
	return err
}

// refusing loads no schema from anywhere.
type refusing struct{ refused error }

func (r *refusing) Load(url string) (any, error) {
	if strings.HasPrefix(url, "urn:") {
		return true, nil // Helm looks nowhere for these and lets everything pass
	}
	if r.refused == nil {
		r.refused = fmt.Errorf("it refers to %s, outside of the chart: put that schema's content into values.schema.json", url)
	}
	return nil, errors.New("not loaded")
}
