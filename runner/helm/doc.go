// Package helm deploys Helm releases through the Helm v3 SDK. It is linked by
// wrktalk-deploy alone, which runs it once per process.
//
// # Two processes
//
// Helm cannot be cancelled: the end of a context makes its functions return
// while their goroutines go on applying (helm#13126), and a rollback begun then
// runs beside the upgrade it undoes. Charts are untrusted as well: a template
// can exhaust the memory or the stack, and no recover() catches that. So
// whatever reads a chart or changes the cluster happens in a child, the same
// program again (step.go): the parent (child.go) gives it one order, hears how
// it fares, and kills it when the deadline passes or the runner says so. Only
// the end of a process ends a deployment. The parent reads the cluster and the
// release's records, and decides. The child stays in its process group and dies
// with it, so that the runner's kill reaches both.
//
// # The way of a deployment
//
//	parent  run.go      reads the history: what serves, what is stuck, is it done already?
//	child   preflight   loads the chart (chart.go), renders it (render.go), and checks
//	                    schema, size, rights and owners (schema.go, size.go, access.go)
//	parent              asks the runner for leave, unlocks what a dead process left
//	child   act.go      installs, upgrades or rolls back, and waits
//	parent  explain.go  on failure: which pod, which event, what did it say last?
//	parent  restore.go  then another child rolls back, with a time limit of its own
//
// Helm's own --atomic is not used: it removes the evidence before anybody could
// look at it, takes the whole timeout again, and picks its target after the
// fact. Here the cause is collected first, and RestoreTimeout bounds the way
// back. Values come from the row alone: an upgrade inherits none from the
// revision before, unlike `helm upgrade` without -f.
//
// # What the records say
//
// Every revision carries labels (labels.go): the task, its claim token, the
// artifact, the version, and whether it is a deployment or the restoration after
// a failed one. By them recovery (recover.go) knows what a dead process had
// reached. A revision that stays pending-install, -upgrade or -rollback blocks
// Helm for ever (history.go says when its owner is known to be gone); it is
// marked failed, or removed when it is a first installation, and then the task
// goes on.
//
// A rollback task goes to the newest successful revision of the artifact it
// names, values and all, or else deploys that artifact. Without one it goes to
// the newest successful revision of another artifact than the one that serves.
// Which artifact a second rollback in a row names is the database's to say: never
// the one the first rollback left.
//
// # Limits worth knowing
//
// Templates may call lookup, in the preflight as in the real run, with the
// agent's rights: what the agent may read, a chart may read. Give it a Role, not
// a ClusterRole. A first installation that failed is uninstalled with its hooks;
// its namespace, its CRDs and volumes of StatefulSets stay, as with Helm.
// Post-renderers, plugins, repositories, DNS lookups and HELM_ variables are not
// used.
package helm
