#!/usr/bin/env bash
# The first process of a host: boot.sh NAME PYTHON METADATA_SERVER, in namespaces of its own, with /run/hosts/NAME for what it keeps. It gives the
# host its own /tmp, shared memory and root's home, its cloud's metadata server, and becomes its ssh server.
set -euo pipefail
name=$1 python=$2 metadata=$3
own=/run/hosts/$name
hostname "$name"

mkdir -p "$own/home" "$own/tmp"
chmod 1777 "$own/tmp"
mount --bind "$own/tmp" /tmp
number=0
while read -r kept; do
    mkdir -p "$kept"
    mount --bind "/run/keep/$number" "$kept"
    number=$((number + 1))
done < /run/keep/list
mount -t tmpfs -o size=1g,mode=1777 tmpfs /dev/shm
mount --bind "$own/home" /run/home

ip link set lo up
ip address add 169.254.169.254/32 dev lo
"$python" "$metadata" "$own/notice.json" > "$own/metadata.log" 2>&1 < /dev/null &

exec "$(command -v sshd)" -D -e -f /run/sshd_config 2> "$own/sshd.log"
