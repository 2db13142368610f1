//go:build !faultinject

package fault

// Point marks the step named by label as about to happen. It returns nil; a
// faultinject build may return the error the step is to fail with, or not
// return at all.
func Point(label string) error { return nil }
