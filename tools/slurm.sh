#!/usr/bin/env bash
# A Slurm cluster of one node, this machine, for tests: tools/slurm.sh up DIR; export SLURM_CONF=DIR/slurm.conf; ...; tools/slurm.sh down DIR
# Needs root, and Debian's packages slurm-wlm and munge.
set -euo pipefail
do=$1
dir=$(mkdir -p "$2" && cd "$2" && pwd)
free() { python3 -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])'; }

if [ "$do" = down ]; then
    for f in slurmd ctld; do [ -f "$dir/$f.pid" ] && kill "$(cat "$dir/$f.pid")" 2>/dev/null || true; done
    exit 0
fi

mkdir -p "$dir/state" "$dir/spool"
node=$(hostname -s)
cat > "$dir/slurm.conf" <<C
ClusterName=test
SlurmctldHost=$node(127.0.0.1)
SlurmctldPort=$(free)
SlurmdPort=$(free)
AuthType=auth/munge
SlurmUser=root
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/ctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/ctld.log
SlurmdLogFile=$dir/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=1,sched_interval=2
ReturnToService=2
JobRequeue=1
MailProg=/bin/true
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(env -u OMP_NUM_THREADS nproc) State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
C
mkdir -p /run/munge && chown munge: /run/munge
pgrep -x munged > /dev/null || runuser -u munge -- munged
export SLURM_CONF=$dir/slurm.conf
slurmctld
slurmd
for _ in $(seq 50); do
    sinfo --noheader --format=%T 2>/dev/null | grep -q idle && exit 0
    sleep .2
done
echo "the node is not idle; see $dir/*.log" >&2
exit 1
