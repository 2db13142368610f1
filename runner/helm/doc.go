// Package helm is the backend of package deploy for Helm releases, through the
// Helm v3 SDK. It is linked by wrktalk-deploy alone, which runs it once per
// process.
//
// # Two processes
//
// Helm cannot be cancelled: the end of a context makes its functions return
// while their goroutines go on applying (helm#13126), and a rollback begun then
// runs beside the upgrade it undoes. Charts are untrusted as well: a template
// can exhaust the memory or the stack, and no recover() catches that. So
// whatever reads a chart or changes the cluster happens in a child, the same
// program again (step.go): the parent (process.go) gives it one command, takes in
// its events (conn.go), and kills it when the deadline passes or the runner says
// so. Only the end of a process ends a deployment. The parent reads the cluster
// and the release's records. The child stays in its process group and dies with
// it, so that the runner's kill reaches both.
//
// # The steps of a deployment
//
// Package deploy owns their order; the files here are named after its steps, as
// they are in package compose.
//
//	parent  observe.go    reads the history (history.go): what serves, who else works on
//	                      it, is it done already?
//	child   preflight.go  loads the chart (load.go), renders it (render.go), checks
//	                      schema, size, permissions and owners (schema.go, size.go,
//	                      permissions.go, owners.go), and has the API try what will be
//	                      applied (dryrun.go, refusal.go)
//	parent  apply.go      once approved: unlocks what a dead process left
//	child   command.go    installs, upgrades or rolls back, undoes what failed
//	                      revisions left, and waits (upgrade.go, rollback.go,
//	                      client.go, versions.go, leftovers.go, statefulset.go)
//	parent  diagnose.go   on failure: which pod, which event, what did it say last?
//	                      (readiness.go, pods.go)
//	parent  restore.go    then another child rolls back, with a time limit of its own
//
// Helm's own --atomic is not used: it removes the evidence before anybody could
// look at it, takes the whole timeout again, and picks its target after the
// fact. Here the cause is collected first, and RestoreTimeout bounds the way
// back. Values come from the row alone: an upgrade inherits none from the
// revision before, unlike `helm upgrade` without -f.
//
// # When a release is up
//
// Helm's own wait decides, so that a release is up when `helm upgrade --wait` would
// say so. It knows the kinds of Kubernetes, not custom resources. What is told while it
// waits, and what is to blame when it waits in vain, comes from kstatus
// (readiness.go), which knows both.
//
// # What the records say
//
// Every revision carries labels (labels.go): the task, its claim token, the
// artifact, the version, and whether it is a deployment or the restoration after
// a failed one. By them Observe knows what a dead process had reached. A revision
// that stays pending-install, -upgrade or -rollback blocks Helm for ever
// (history.go says when its owner is known to be gone); it is marked failed, or
// removed when it is a first installation, and then the task goes on.
//
// A rollback task goes to the newest successful revision of the artifact it
// names, values and all, or else deploys that artifact. Without one it goes to
// the newest successful revision of another artifact than the one that serves.
// Which artifact a second rollback in a row names is the database's to say: never
// the one the first rollback left. What a person brought up with Helm is not in the
// database: then the history says what served before.
//
// # Limits worth knowing
//
// Templates may call lookup, in the preflight as in the real run, with the
// agent's permissions: what the agent may read, a chart may read. Give it a Role,
// not a ClusterRole. A first installation that failed is uninstalled with its
// hooks; its namespace, its CRDs and volumes of StatefulSets stay, as with Helm.
// Post-renderers, plugins, repositories, DNS lookups and HELM_ variables are not
// used.
package helm
