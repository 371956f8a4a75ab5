# Where the demonstration keeps what it makes. Sourced by start and stop.
top=$(cd "$(dirname "$0")/../.." && pwd)
bin=$top/bin
state=${DEMO_STATE:-$top/.demo}
example=$top/examples/voting
root=${DEMO_ROOT:-/var/lib/gantry-demo}
run=/run/gantry-demo
socket=/run/gantry/gantry.sock
# Bridge, nftables table and cgroup of the daemon that start starts.
name=gantry-demo
export GANTRY_HOST=${GANTRY_HOST:-unix://$socket}

say() { printf '==> %s\n' "$*"; }
fail() { printf 'demo: %s\n' "$1" >&2; [ -z "${2:-}" ] || printf 'hint: %s\n' "$2" >&2; exit 1; }

# daemon_pid prints the process of the daemon that the demonstration started, if it still runs.
daemon_pid() {
  [ -r "$state/gantryd.pid" ] || return 1
  pid=$(cat "$state/gantryd.pid")
  [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$bin/gantryd" ] ||
    [ "$(readlink "/proc/$pid/exe" 2>/dev/null)" = "$bin/gantryd (deleted)" ] || return 1
  echo "$pid"
}

case $(. /etc/os-release && echo "$ID") in
  ubuntu) BASE=${BASE:-ubuntu:noble} ;;
  *) BASE=${BASE:-debian:bookworm} ;;
esac
export BASE
