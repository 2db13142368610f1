//go:build !faultinject

package fault

// Enabled tells whether this build injects faults.
const Enabled = false

// Point marks the step named by label as about to happen. It returns nil; a
// faultinject build may return the error the step is to fail with, or not
// return at all.
func Point(label string) error { return nil }
