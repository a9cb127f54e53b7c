#!/bin/bash
# Boots systemd over this host's own system, in namespaces of its own; what it writes stays in a
# directory that the caller removes. Becomes `unshare`, whose only child is that systemd.
#
#   machine.sh DIR NAME IMAGES BINARY
#
# DIR     an empty directory on a disk; the machine's changes and its /var/lib go there
# NAME    of its control groups
# IMAGES  an image cache; the machine has its content where an installation has its own
# BINARY  becomes /root/sinew in the machine
set -euo pipefail
export DIR=$1 NAME=$2 IMAGES=$3 BINARY=$4
CGROUPS=/sys/fs/cgroup

# A control group of its own in every hierarchy: its root, seen from inside.
if [ "$(stat -f -c %T $CGROUPS)" = cgroup2fs ]; then
    hierarchies=$CGROUPS
else
    hierarchies=$(awk '$3 == "cgroup" || $3 == "cgroup2" { print $2 }' /proc/self/mounts)
fi
for hierarchy in $hierarchies; do
    mkdir -p "$hierarchy/$NAME"
    # A new cpuset takes no process until it has been given processors and memory.
    for what in cpuset.cpus cpuset.mems; do
        if [ -e "$hierarchy/$NAME/$what" ] && [ -e "$hierarchy/$what" ]; then
            cat "$hierarchy/$what" >"$hierarchy/$NAME/$what"
        fi
    done
    echo $$ >"$hierarchy/$NAME/cgroup.procs"
done

# Links cost nothing and share no name: whatever the machine removes, the cache keeps.
cache=$DIR/var-lib/sinew/images
mkdir -p "$DIR"/{upper,work,root} "$cache"
cp -al "$IMAGES/." "$cache/" 2>/dev/null || cp -a "$IMAGES/." "$cache/"
# The ranges of user ids are taken once on the whole host.
mkdir -p -m 755 /run/sinew
mkdir -p -m 700 /run/sinew/idmap

exec unshare --mount --pid --fork --kill-child=SIGKILL --uts --ipc --cgroup --net \
    --propagation private bash -euo pipefail -c '
root=$DIR/root
mount -t overlay overlay -o "lowerdir=/,upperdir=$DIR/upper,workdir=$DIR/work" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t sysfs sysfs "$root/sys"
if [ "$(stat -f -c %T /sys/fs/cgroup)" = cgroup2fs ]; then
    mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
else
    mount -t tmpfs -o mode=755 tmpfs "$root/sys/fs/cgroup"
    awk "\$3 == \"cgroup\" || \$3 == \"cgroup2\" { print \$2, \$3 }" /proc/self/mounts |
        while read -r path kind; do
            name=${path##*/}
            here=$root/sys/fs/cgroup/$name
            [ -d "$path" ] && [ "${path#/sys/fs/cgroup/}" != "$path" ] || continue
            mkdir -p "$here"
            case $kind/$name in
                cgroup2/*) mount -t cgroup2 cgroup2 "$here" ;;
                */systemd) mount -t cgroup -o none,name=systemd cgroup "$here" ;;
                *) mount -t cgroup -o "$name" cgroup "$here" ;;
            esac
        done
fi
mount -t tmpfs -o mode=755 tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p -m 755 "$root/run/sinew"
mkdir -m 700 "$root/run/sinew/idmap"
mount --bind /run/sinew/idmap "$root/run/sinew/idmap"
# Volumes and images need a file system that can be mounted with mapped ids: an overlay cannot.
mount --bind "$DIR/var-lib" "$root/var/lib"
mount -t tmpfs -o mode=700 tmpfs "$root/root"
touch "$root/root/sinew"
mount --bind "$BINARY" "$root/root/sinew"
mount -o remount,bind,ro "$root/root/sinew"

# Of the system only what keeps a log and runs services: nothing may touch the devices, modules
# and settings that are the whole host has.
rm -rf "$root"/etc/systemd/system/*.wants "$root"/etc/sinew "$root"/usr/local/bin/sinew
for wanted in "$root"/lib/systemd/system/sysinit.target.wants/*; do
    case ${wanted##*/} in
        systemd-journald.service | systemd-tmpfiles-setup.service) ;;
        *) rm -f "$wanted" ;;
    esac
done
rm -f "$root"/lib/systemd/system/{local-fs,timers,multi-user}.target.wants/*
echo -n >"$root/etc/fstab"
ip link set lo up
cd "$root"
mkdir -p host
pivot_root . host
umount -l /host
rmdir /host
exec env -i container=sinew-test PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=multi-user.target --log-target=console --log-level=notice
'
