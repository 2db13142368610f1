// Package fault lets a test fail, or kill, the program at a chosen step.
//
// Code that must survive a power loss or a full disk calls [Point] before each
// step, with a label that names the step and its object. In normal builds Point
// is an empty function which the compiler removes. Built with the tag
// faultinject, it obeys the environment variable WRKTALK_FAULT: instructions
// separated by semicolons,
//
//	kill:PATTERN:N   SIGKILL to this process at the N-th label that matches
//	fail:PATTERN:N   the N-th matching step fails with EIO
//	full:PATTERN:N   the N-th matching step fails with ENOSPC
//	once=FILE        the instructions above act only if FILE could be created
//	                 exclusively: one kill across any number of restarts
//	trace=FILE       appends every label, a line each, to FILE (trace:FILE too)
//
// In a PATTERN, * stands for any text, slashes included, and ? for one byte.
// N counts from 1 within one process; N of 0 means every matching step. A
// malformed instruction panics at start: a test that injects nothing must not pass.
package fault

// Step does f as the step named by label, unless it is to fail there: a [Point] and
// what follows it.
func Step(label string, f func() error) error {
	if err := Point(label); err != nil {
		return err
	}
	return f()
}

// EnvVar is the environment variable that a faultinject build reads.
const EnvVar = "WRKTALK_FAULT"
