// Package supervisor starts the agent's components as processes of their own,
// restarts those that die, forwards what they log, says whether they are
// ready, and stops them in order. It knows nothing of databases or tasks: a
// component is a name, arguments and an environment.
//
//	systemd, a container runtime, a terminal
//	 │ SIGTERM, SIGINT          ▲ sd_notify, /healthz, /readyz, /metrics, log lines
//	 ▼                          │
//	wrktalk-agent run ── supervisor: one oklog/run group
//	 │  one actor per component, one for signals, one for those that follow
//	 │  the first, one for HTTP, one for the service manager
//	 ├── wrktalk-agent fetcher     each in a process group of its own, with
//	 ├── wrktalk-agent runner      stdin   /dev/null
//	 │    └── wrktalk-deploy       stdout  ─▶ supervisor's log
//	 └── wrktalk-agent notifier    stderr  ─▶ supervisor's log, death report
//	                               fd 3    ◀─ configuration, then end of file
//	                               fd 4    ─▶ ready or not, and why; samples
//
// # What happens when something dies
//
// A component dies: what is left of its process group is killed, what it had
// written is forwarded to the last byte, its death is reported with the panic
// and the last lines of its standard error, and it is started again after a
// delay that doubles up to [RestartPolicy].Max. After
// [RestartPolicy].CrashLoopThreshold deaths in a row, none of them after a life of
// [RestartPolicy].ResetAfter, one error line says that it is in a crash loop, and
// /healthz answers 503 until it has lived for so long. Exit code 2 means that the
// component refuses its configuration: it is tried again, but at the slowest pace
// from the start. (The Go runtime exits with 2 after a panic as well; a trace on
// standard error tells the two apart.)
//
// The supervisor is asked to stop (SIGTERM, SIGINT): it stops fetcher, runner
// and notifier in the order they were started, each within its
// [Component].StopTimeout, then its process group is killed. A second signal
// is passed on at once to all that are left; the runner then interrupts its
// deployment. A third kills their process groups. SIGHUP changes nothing. On a
// terminal, Ctrl-C reaches the supervisor alone, because the components are in
// other process groups; so the order holds there too.
//
// A systemd unit needs Type=notify and KillMode=mixed. With the default
// KillMode, systemd itself would send SIGTERM to every process of the unit: out
// of order, to wrktalk-deploy too, and the supervisor's own would then be the
// second for the runner. While components are not ready yet, and while they
// stop, the supervisor asks systemd for more time every ten seconds.
//
// The supervisor dies without warning (SIGKILL, out of memory, a panic): the
// kernel sends each component SIGTERM (parent-death signal), and each sees the
// end of its control pipe, which also covers the moment before the parent-death
// signal is set. They stop, and one that has not stopped within its StopTimeout
// kills its own process group (package controlpipe).
//
// A component starts processes in other groups (the runner: wrktalk-deploy):
// it has to tie them to itself likewise; killing its group does not reach them.
//
// Where the supervisor is process 1, as in a container, it also collects the
// zombies of processes whose parents have died.
//
// # One version
//
// The default program is /proc/self/exe: the very file this supervisor was
// started from, even after a package upgrade has put another one in its place
// or removed it. A restarted component is never of another version than its
// supervisor; an upgrade takes effect when the supervisor is restarted.
//
// # Logs
//
// A component's line that is a record of log/slog already (a JSON object, or a
// line that begins with time=) passes unchanged; components set their own
// component key. Any other line (a panic trace, what a C library or the Go
// runtime prints) becomes a record with the component's name, at level ERROR
// from standard error and INFO from standard output. Lines are cut at 16 KiB.
// When the output stalls, lines are dropped after two seconds, counted and
// reported: a full disk or a stopped terminal must not stop a deployment.
package supervisor
