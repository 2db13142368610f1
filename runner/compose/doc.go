// Package compose is the backend of package deploy for Docker Compose, through the
// Compose v2 library. It is linked by wrktalk-deploy alone, which runs it once per
// process.
//
// # The working directory
//
// A release arrives as a directory that is shredded after the run. So its bundle is
// first kept (store.go) below the working directory, where no container can change
// it, and looked at before it is used again (integrity.go):
//
//	.wrktalk-agent            marks the directory as the agent's
//	.lock                     held by the process that deploys
//	.contents-key             keys the digests in labels
//	current                   -> bundles/2.5.0-0f343b0931126
//	bundles/2.5.0-0f343b0931126/
//	bundles/.kept-2.5.0-...   when it was kept, and the digests of its files
//	projects/NAME/project/    what containers mount: the project directory
//	projects/NAME/beside/     what releases have beside it
//	laid/NAME.json            what the agent laid out there
//	replaced/NAME/2.5.0-.../  what others had written where a release has a file
//
// The row's env is never part of it. Names below the working directory are
// opened through os.Root.
//
// The project directory lasts, as that of a person does who runs docker compose in
// it: before a release is brought up, its files are laid out over it (lay.go), each
// by a rename. A bundle is loaded from where it is kept, and what it mounts is then
// moved to the project directory (place.go). What becomes of each file, by what lies
// there, what was laid there and what the release has, decide.go says; look.go
// follows no link on the way. Everything that is about to be laid out is on record
// (laid.go) before the first file is touched, so that an interrupted process is
// gone on from. What the first version kept in releases/ goes over (former.go).
//
// # The steps of a deployment
//
// Package deploy owns their order; the files here are named after its steps, as
// they are in package helm. Observe (observe.go) takes the lock of the working
// directory and looks at the project's containers. Preflight (preflight.go) keeps
// the bundle, finds its files and reads them with nothing but the row's env to see
// (locate.go, load.go, env.go), refuses what a release may not do (scan.go), fetches
// or builds images (images.go, build.go), and asks the engine for all that will be
// needed (requirements.go, rehearse.go, conflicts.go, hostports.go, trial.go).
// Apply (apply.go) lays its files out (layout.go) and brings the project up as
// `docker compose up -d
// --remove-orphans` does, while events of the engine tell how the containers fare
// (watch.go, readiness.go). Diagnose (diagnose.go) finds the container to blame,
// Restore (restore.go) brings the release before back, and CleanUp (cleanup.go)
// removes old bundles.
//
// # What Compose is trusted with, and what not
//
// Compose creates, recreates, orders and starts: convergence is its strength.
// Its own waiting is not used, because it takes an init container that ends with
// 0 for a failure (docker/compose#10596). Its environment, its .env discovery
// and its remote includes are not used, because they see more than the row. It
// has no undo.
//
// The labels are those the CLI sets, so that docker compose ls, ps, logs and
// down know the project; some of our own say which task made a container.
// None of them is part of Compose's config hash, so that an unchanged service is
// left alone, but one (contents.go), so that one is not whose configs or
// secrets changed, or what it mounts of the release.
package compose
