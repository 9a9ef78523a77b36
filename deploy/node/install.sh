#!/usr/bin/env bash
# Sets up a machine (Ubuntu 24.04) from a copy of the project: install.sh head|gpu|cpu. It may run again; on an image on which
# it has run before, it takes seconds.
set -euo pipefail
role=$1
case $role in
    head | gpu | cpu) ;;
    *) echo "install.sh: head, gpu or cpu, not $role" >&2; exit 2 ;; # a GPU's machine would get a torch without CUDA
esac
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# The token as Ray wants it: its owner's alone.
if [ -f ~/.ray/auth_token ]; then chmod 700 ~/.ray && chmod 600 ~/.ray/auth_token; fi

# /nvme: the machine's own disk where it has one, else a folder; for what may be lost with the machine.
if ! mountpoint -q /nvme; then
    sudo mkdir -p /nvme
    disk=$(lsblk -dpno NAME,MODEL | awk '/Instance Storage|nvme_card/ { print $1; exit }')
    if mountpoint -q /opt/dlami/nvme; then # AWS's images for deep learning mount it there
        sudo mount --bind /opt/dlami/nvme /nvme
    elif [ -n "$disk" ]; then
        sudo mkfs.ext4 -q -F -E lazy_itable_init=1,nodiscard "$disk"
        sudo mount "$disk" /nvme
    fi
fi
sudo mkdir -p /nvme/spill /nvme/nearby
sudo chown "$(id -u)" /nvme /nvme/spill /nvme/nearby
chmod 700 /nvme/nearby

extra=${RAYMAT_EXTRAS:-$([ "$role" = gpu ] && echo aws,gpu || echo aws)}

# What is installed is as the project says: then nothing is to do.
kind=$([ "$role" = gpu ] && echo gpu || echo cpu) # the head computes nothing: it has what decoders have
wanted="$kind $extra $(cat "$project/pyproject.toml" "$project/constraints.txt" | sha256sum)"
if [ "$(cat ~/env/.raymat 2>/dev/null)" != "$wanted" ]; then
    if ! dpkg -s python3-venv > /dev/null 2>&1; then
        sudo apt-get -o DPkg::Lock::Timeout=300 -q update
        sudo apt-get -o DPkg::Lock::Timeout=300 -qy install python3-venv
    fi
    test -x ~/env/bin/pip || python3 -m venv ~/env
    if [ "$kind" = cpu ]; then # a torch without CUDA saves some gigabytes
        torch=$(grep -oE '^torch==[^ ;]+' "$project/constraints.txt")
        ~/env/bin/pip install -q --index-url https://download.pytorch.org/whl/cpu "$torch"
    fi
    ~/env/bin/pip install -q -c "$project/constraints.txt" -e "${project}[$extra]"
    echo "$wanted" > ~/env/.raymat
fi

# For people and `ray exec`.
line='source ~/raymat/deploy/node/env.sh'
grep -qxF "$line" ~/.bashrc || echo "$line" >> ~/.bashrc

# A machine whose driver does not fit must not join.
if [ "$role" = gpu ]; then
    ~/env/bin/python -c 'import torch; assert torch.cuda.is_available(), torch.version.cuda'
fi
