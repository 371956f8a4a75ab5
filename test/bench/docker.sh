# Runs Debian's dockerd from a throw-away root on a machine of the lab. Arguments: the root, the folder of its socket.
set -euo pipefail
root=$1 share=$2
mount --bind "$root" "$root"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount --rbind /sys "$root/sys"
mount -t tmpfs tmpfs "$root/run"
mount -t tmpfs tmpfs "$root/tmp"
mkdir -p "$root$share" "$share/data" "$root/var/lib/docker"
mount --bind "$share" "$root$share"
echo 1 >/proc/sys/net/ipv4/ip_forward
exec chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin dockerd --data-root "$share/data" \
  --exec-root /run/docker --pidfile /run/docker.pid --host "unix://$share/s" --log-level warn
