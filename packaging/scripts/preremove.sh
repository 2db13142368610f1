#!/bin/sh
# Before the files go, for dpkg (remove, upgrade, deconfigure, failed-upgrade) and rpm (0, 1).
set -e

if [ "$1" = remove ] || [ "$1" = 0 ]; then
	units="wrktalk-agent.target wrktalk-agent.service wrktalk-agent-fetcher.service wrktalk-agent-runner.service wrktalk-agent-notifier.service"
	systemctl --no-reload disable $units >/dev/null 2>&1 || true
	if [ -d /run/systemd/system ]; then
		# A deployment in flight may end first.
		systemctl stop $units
	fi
fi
