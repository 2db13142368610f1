//go:build !faultinject

package fault

import "testing"

func TestPointIgnoresTheEnvironment(t *testing.T) {
	t.Setenv(EnvVar, "fail:*:0")
	if err := Point("any"); err != nil {
		t.Errorf("a normal build injected %v", err)
	}
}
