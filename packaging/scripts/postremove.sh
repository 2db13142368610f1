#!/bin/sh
# After the files are gone, for dpkg (remove, purge, upgrade, ...) and rpm (0, 1). Removal keeps
# configuration and state; rpm has no purge: docs/installation.md says what to do there.
set -e

state=/var/lib/wrktalk-agent

# overwrite shreds all files below the directories that are there.
overwrite() {
	for dir in "$@"; do
		[ ! -d "$dir" ] || find "$dir" -type f -exec shred -n 1 -u -- {} +
	done
}

case "$1" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl daemon-reload || true
	fi
	;;
purge)
	# Releases, env and values may be secret; so is what a release brought as its own .env.
	overwrite /etc/wrktalk-agent/credentials $state/staging
	if [ -d $state/compose/bundles ]; then
		find $state/compose/bundles -type f -name '.env*' -exec shred -n 1 -u -- {} +
	fi
	rm -rf /etc/wrktalk-agent /run/wrktalk-agent
	# What containers keep, and may be using now, is not the agent's to remove.
	kept=
	for dir in $state/compose/projects $state/compose/replaced; do
		if [ -d "$dir" ] && [ -n "$(find "$dir" -mindepth 1 -print -quit)" ]; then
			kept="$kept $dir"
		fi
	done
	if [ -z "$kept" ]; then
		rm -rf --one-file-system $state
	else
		find $state -mindepth 1 -maxdepth 1 ! -name compose -exec rm -rf --one-file-system -- {} +
		find $state/compose -mindepth 1 -maxdepth 1 ! -name projects ! -name replaced ! -name .wrktalk-agent \
			-exec rm -rf --one-file-system -- {} +
		echo "wrktalk-agent: kept, for containers may use it:$kept; remove it when nothing does any more"
	fi
	;;
esac
