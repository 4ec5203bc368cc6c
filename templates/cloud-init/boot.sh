# From a server that has just started to a node. Safe to repeat.
set -eu
set -a
. /etc/rgrid/node.env
set +a
# Whatever goes wrong from here on, the gateway hears the last lines that were written.
exec >>/var/log/rgrid-boot.log 2>&1
trap 'test $? = 0 || python3 -I /opt/rgrid/boot.py trouble /var/log/rgrid-boot.log' EXIT

ip -4 route replace blackhole 169.254.169.254/32
# Nothing is to be installed, or restarted under running jobs, in an hour that is paid for.
systemctl mask --now --quiet apt-daily.timer apt-daily-upgrade.timer unattended-upgrades.service apport.service || true
# A kernel without one of them says so; what jobs must have, the agent checks.
sysctl --quiet --load=/etc/sysctl.d/90-rgrid.conf || true
swapoff --all
# An engine that started before its settings were written has not read them.
[ /run/docker.pid -nt /etc/docker/daemon.json ] || systemctl restart docker.service
python3 -I /opt/rgrid/boot.py fetch
systemctl daemon-reload
# Waits until the node has joined.
if ! systemctl enable --now --quiet rgrid-node.service; then
    journalctl --unit=rgrid-node.service --lines=20 --no-pager --output=cat
    exit 1
fi
