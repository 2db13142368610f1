// Package compose deploys Compose releases through the Compose v2 library. It
// is linked by wrktalk-deploy alone, which runs it once per process.
//
// # The room
//
// A release arrives as a directory that is shredded after the run, but its
// containers bind-mount files for as long as they live. So the bundle is first
// kept (store.go) below the working directory, and looked at before it is used
// again (kept.go):
//
//	.lock                     held by the process that deploys
//	.contents-key             keys the digests in labels
//	current                   -> releases/2.5.0-0f343b0931126
//	releases/2.5.0-0f343b0931126/
//	releases/.kept-2.5.0-...  when it was kept, and the digests of its files
//
// The row's env is never part of it. Names below the working directory are
// opened through os.Root.
//
// # The way of a deployment
//
// Run (run.go) takes the lock, keeps the bundle, looks for what it may not do
// (scan.go), loads it (load.go) with nothing but the row's env to see (env.go),
// and fetches images (images.go). So far nothing was changed, and every refusal
// says so. Then the runner is asked for leave: it turns maintenance on. After
// that the project is brought up as `docker compose up -d --remove-orphans`
// does it (up.go), while events of the engine tell how the containers fare
// (watch.go, judge.go). What does not come up is explained (explain.go) and
// replaced by what served before (restore.go). At the end old bundles go
// (prune.go).
//
// # What Compose is trusted with, and what not
//
// Compose creates, recreates, orders and starts: convergence is its strength.
// Its own waiting is not used, because it takes an init container that ends with
// 0 for a failure (docker/compose#10596). Its environment, its .env discovery
// and its remote includes are not used, because they see more than the row. Its
// undo does not exist.
//
// The labels are those the CLI sets, so that docker compose ls, ps, logs and
// down know the project; some of our own say which task made a container.
// None of them is part of Compose's config hash, so that an unchanged service is
// left alone, but one (contents.go), so that one whose configs or secrets changed
// is not.
package compose
