# Runs as the one service of a virtual machine: Debian 12 with its systemd and kernel, cgroup v2, and
# nothing of ours but what is on the second disk. Prints `check NAME: ok` or why not; the test reads
# the console.
exec >/dev/ttyS0 2>&1
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
check() { local name=$1; shift; if "$@"; then echo "check $name: ok"; else echo "check $name: failed"; fi; }
# Ten minutes of this machine are two of another one.
until_ok() { for _ in $(seq 300); do "$@" >/dev/null 2>&1 && return 0; sleep 0.2; done; return 1; }
pid_of() { systemctl show --property=MainPID --value "$1"; }

uname -r
ip link set lo up
mkdir -p /var/lib/sinew/images /etc/sinew/keys
cp -a /mnt/images/. /var/lib/sinew/images/
cp /mnt/sinew /root/sinew

/root/sinew brain --listen 127.0.0.1:8484 --json --scenarios /mnt/scenarios >/root/brain.json &
until_ok grep -q environment_key /root/brain.json
of_brain() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p" /root/brain.json; }
ask() {
    exec 3<>/dev/tcp/127.0.0.1/8484
    printf '%s %s HTTP/1.1\r\nHost: brain\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%s' \
        "$1" "$2" "$(of_brain api_key)" "${#3}" "$3" >&3
    timeout 30 cat <&3
    exec 3>&-
}
cat >/etc/sinew/sinew.toml <<END
data = "/var/lib/sinew"
[limits]
shutdown_drain = "1s"
[pool]
initial = "512MiB"
step = "256MiB"
max = "1GiB"
reserve = "64MiB"
[[profile]]
name = "default"
image = "debian-minimal"
memory = "128MiB"
disk = "128MiB"
[[environment]]
id = "$(of_brain environment_id)"
key_file = "/etc/sinew/keys/test"
base_url = "http://127.0.0.1:8484"
END
useradd --system --user-group sinew
install -o sinew -g sinew -m 0600 /dev/stdin /etc/sinew/keys/test <<<"$(of_brain environment_key)"

check install /root/sinew install --systemd --yes
check both-run systemctl is-active sinew.service sinew-launcher.service

environment=$(of_brain environment_id)
agent=$(ask POST /v1/agents '{"name":"keeps","model":"script/keeps","tools":[{"type":"agent_toolset_20260401"}]}' | grep -o 'agent_[0-9a-f]*' | head -1)
session=$(ask POST /v1/sessions "{\"agent\":\"$agent\",\"environment_id\":\"$environment\"}" | grep -o 'sesn_[0-9a-f]*' | head -1)
ask POST "/v1/sessions/$session/events" '{"events":[{"type":"user.message","content":[{"type":"text","text":"Keep"}]}]}' >/dev/null
check sandbox until_ok sinew exec "$session" -- true

groups=/sys/fs/cgroup/system.slice/sinew-sandboxes.service
check groups-are-there test -n "$(find $groups -name payload)"
check launcher-is-not-among-them grep -q sinew-launcher.service "/proc/$(pid_of sinew-launcher.service)/cgroup"
held=$(cat $(find $groups -path '*agent/cgroup.procs'))

before=$(pid_of sinew-launcher.service)
check restart-launcher systemctl restart sinew-launcher.service
check it-is-another test "$(pid_of sinew-launcher.service)" != "$before"
kill -KILL "$(pid_of sinew-launcher.service)"
check launcher-comes-back until_ok systemctl is-active sinew-launcher.service
kill -KILL "$(pid_of sinew.service)"
check serve-comes-back until_ok sinew exec "$session" -- true
check same-processes test "$(cat $(find $groups -path '*agent/cgroup.procs'))" = "$held"

check go sinew exec "$session" -- touch go
played() { ask GET "/dev/sessions/$session" '' | grep -q '"completed":1'; }
check played until_ok played
ask GET "/dev/sessions/$session" '' | tail -1 | cut -c1-2000

refused() { ! sinew install --uninstall --yes 2>/root/refused && grep 'sandbox runs' /root/refused; }
check uninstall-is-refused refused
check stop-ends-sandboxes systemctl stop sinew-sandboxes.service
check none-is-left test -z "$(find $groups -name payload 2>/dev/null)"
check uninstall sinew install --uninstall --purge --end-sandboxes --yes
check nothing-is-left test ! -e /var/lib/sinew -a ! -e /usr/local/bin/sinew -a -z "$(losetup -a)"
journalctl --no-pager --output=short --unit='sinew*' | grep -E 'WARN|ERROR|failed|Failed' | tail -40
echo scene: over
systemctl poweroff -ff
