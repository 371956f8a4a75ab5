# The life of one machine of the lab. First it enters cgroups of its own, then namespaces of its own, then it waits as
# process 1: when it dies, everything on the machine dies. Arguments: the cgroup's name, the host name, the /run to use, and
# for a volatile disk its kind, its device and the daemon's root; for LazyFS also its program, its settings, where it is
# mounted, and the folders of the root that are on it.
set -euo pipefail

enter_cgroups() {
  local dir
  for dir in $(awk '$3 ~ /^cgroup/ {print $2}' /proc/mounts); do
    mkdir -p "$dir/$1"
    if [ -e "$dir/$1/cpuset.cpus" ] && [ ! -e "$dir/$1/cgroup.controllers" ]; then
      cat "$dir/cpuset.cpus" >"$dir/$1/cpuset.cpus"
      cat "$dir/cpuset.mems" >"$dir/$1/cpuset.mems"
    fi
    echo $$ >"$dir/$1/cgroup.procs"
  done
}

# In the new namespaces /sys shows the new network, and the cgroup file systems begin at the machine's own cgroup.
mount_sys() {
  local mounts type dir options
  mounts=$(awk '$3 ~ /^cgroup/ {print $3, $2, $4}' /proc/mounts)
  mount -t sysfs sysfs /sys
  if [[ $mounts != "cgroup2 /sys/fs/cgroup "* ]]; then
    mount -t tmpfs -o mode=755 tmpfs /sys/fs/cgroup
  fi
  while read -r type dir options; do
    mkdir -p "$dir" 2>/dev/null || true
    if [ "$type" = cgroup2 ]; then
      mount -t cgroup2 none "$dir"
    else
      mount -t cgroup -o "$(tr , '\n' <<<"$options" | grep -vE '^(rw|ro|nosuid|nodev|noexec|relatime)$' | paste -sd,)" none "$dir"
    fi
  done <<<"$mounts"
}

if [ "${LAB_INSIDE:-}" = "" ]; then
  enter_cgroups "$1"
  # The ready file tells the starter that a signal to this process reaches the machine.
  LAB_INSIDE=1 exec unshare --mount --net --pid --uts --ipc --cgroup --fork --kill-child=KILL --mount-proc \
    bash "$0" "$@"
fi

mount_sys
hostname "$2"
ip link set lo up
# As a machine has them: a /run that a reboot empties. The resolver's file may live there, so it is kept.
resolv=$(cat /etc/resolv.conf 2>/dev/null || true)
mount --bind "$3" /run
if [ -L /etc/resolv.conf ]; then
  target=$(readlink -m /etc/resolv.conf)
  mkdir -p "$(dirname "$target")"
  printf '%s\n' "$resolv" >"$target"
fi
# A disk of the machine's own. On this ext4 a new name never waits for the data, and nothing is written unless somebody asks.
case "${4:-}" in
ext4) mount -o loop,noauto_da_alloc,commit=3600 "$5" "$6" ;;
lazyfs)
  mkdir -p "$9"
  "$7" "$9" --config-path "$8" -o allow_other -o modules=subdir -o "subdir=$5" -f >"$8.log" 2>&1 </dev/null &
  for _ in $(seq 500); do mountpoint -q "$9" && break; sleep 0.02; done
  mountpoint -q "$9" || { tail -5 "$8.log" >&2; exit 1; }
  for dir in "${@:10}"; do
    mkdir -p "$9/$dir" "$6/$dir"
    mount --bind "$9/$dir" "$6/$dir"
  done
  ;;
esac
echo ready
trap '' INT TERM HUP
# The shell reaps whatever loses its parent.
while :; do sleep 3600 & wait $! || true; done
