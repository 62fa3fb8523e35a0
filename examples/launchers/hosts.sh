#!/usr/bin/env bash
# Train on several hosts with torchrun, started over ssh from one place:
#
#   examples/launchers/hosts.sh node0,node1 8 mt.yaml --run /shared/runs/mt     # 8 ranks on each host
#
# Every host needs ssh without a password, this folder at the same path (or a shared file system), and the same Python
# environment; the run directory is shared. torchrun starts the ranks of all hosts again, up to RESTARTS times (3), when
# one dies. Without GPUs: ACCELERATE_USE_CPU=true. SSH is the command to log in with, PYTHON the interpreter on the hosts,
# PORT a free port of the first host. These variables, and those that begin with NCCL_, GLOO_, HF_, OMP_, ACCELERATE_ or
# RANKZERO_, go to the ranks.
set -euo pipefail

if [ $# -lt 3 ]; then
  sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
IFS=, read -ra hosts <<<"$1"
ranks=$2
shift 2

exports=()
while IFS= read -r name; do
  exports+=("$name=${!name}")
done < <(compgen -e | grep -E '^(NCCL|GLOO|HF|OMP|ACCELERATE|RANKZERO)_|^PYTHONPATH$' || true)

# all words are quoted for the shell of the host
remote() {
  local first=false
  [ "$1" = "${hosts[0]}" ] && first=true # by name: in a container, torchrun does not recognize itself
  printf 'cd %q && exec env' "$PWD"
  printf ' %q' "${exports[@]}" "${PYTHON:-python3}" -m torch.distributed.run \
    --nnodes "${#hosts[@]}" --nproc_per_node "$ranks" --max-restarts "${RESTARTS:-3}" \
    --rdzv_backend c10d --rdzv_endpoint "${hosts[0]}:${PORT:-29500}" --rdzv_id "${RUN_ID:-rankzero}" --local_addr "$1" \
    --rdzv_conf "is_host=$first" \
    -m -- trainer train "${@:2}"
}

pids=()
trap 'kill "${pids[@]}" 2>/dev/null || true' INT TERM HUP
for host in "${hosts[@]}"; do
  # -tt: when the connection ends, the processes on the host get a hang-up, and torchrun stops its ranks
  ${SSH:-ssh} -tt -o BatchMode=yes -o ServerAliveInterval=15 "$host" "$(remote "$host" "$@")" </dev/null &
  pids+=($!)
done

code=0
for pid in "${pids[@]}"; do
  wait "$pid" || code=$?
done
exit "$code"
