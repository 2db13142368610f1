#!/bin/sh
# Before anything is unpacked, for dpkg (install, upgrade, abort-upgrade) and rpm (1, 2).
set -e

# What this version reads; see internal/stateformat.
format=1

file=/var/lib/wrktalk-agent/format
if [ "$1" != abort-upgrade ] && [ -r "$file" ]; then
	there=$(cat "$file")
	if [ "$there" -gt "$format" ] 2>/dev/null; then
		echo "wrktalk-agent: not installed: the state in /var/lib/wrktalk-agent has format $there, this version knows formats up to $format: install the version that left it, or a newer one" >&2
		exit 1
	fi
fi
