#!/bin/sh
# After everything is unpacked, for dpkg (configure [VERSION], abort-*) and rpm (1, 2).
set -e

units="wrktalk-agent.service wrktalk-agent-fetcher.service wrktalk-agent-runner.service wrktalk-agent-notifier.service"

systemd-sysusers wrktalk-agent.conf
systemd-tmpfiles --create wrktalk-agent.conf

if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	# What runs is restarted, and nothing else is started. The agent claims nothing more at
	# once and ends when the deployment in flight has, which nobody here waits for.
	systemctl --no-block try-restart $units
fi

if [ "$1" = 1 ] || { [ "$1" = configure ] && [ -z "$2" ]; }; then
	cat <<'EOF'
WrkTalk Agent is installed and does not run yet. What is to be done:
  1. Say what it deploys, and where its database is: /etc/wrktalk-agent/config.toml
  2. Leave it the database's password:
       (umask 077; cat > /etc/wrktalk-agent/credentials/db_password)
  3. Find out what is missing:   systemd-run --wait --pipe -q -p User=wrktalk-agent \
       -p SupplementaryGroups=docker -p LoadCredential=wrktalk-agent:/etc/wrktalk-agent/credentials \
       wrktalk-agent check
  4. Start it, now and at boot:  systemctl enable --now wrktalk-agent
/usr/share/doc/wrktalk-agent/installation.md tells more.
EOF
fi
