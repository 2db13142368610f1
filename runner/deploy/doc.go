// Package deploy is the one flow of a deployment, over a backend that knows one
// platform. It is linked by wrktalk-deploy alone, which runs it once per process.
//
// The flow owns what is the same everywhere: the order of the steps, the approval
// by the runner, the limits of time, the sentences, the masking of secrets, and the
// Result. A Backend owns what it takes to see and change its platform. It never
// decides what comes next.
//
//	table.go    what was observed × what is asked for → what to do
//	flow.go     Run: observe, decide, act
//	apply.go    preflight, approval, apply; or confirm what was applied before
//	restore.go  after a failure or a death: bring back what served before
//	result.go   what is said about it
//	report.go   events and log, masked
//	backend.go  what a platform has to provide
//
// Two rules hold throughout. Nothing that serves is changed without the runner's
// approval, which is asked for once: the maintenance page is up by then. And half
// applied is the one state that must not stay, so whatever brings back what served
// before runs under a limit of its own, which neither the end of the deployment's
// time nor an interruption cuts short.
package deploy
