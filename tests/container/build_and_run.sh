#!/usr/bin/env bash
# Builds the image for real and runs it as Apptainer would, without Docker and without a registry of
# images: build_and_run.sh OUT [PYTHON]
#
# The base image is made by debootstrap from the mirror that apt uses here, the wheels by the pip of
# PYTHON as it is set up here; buildah builds in a chroot. Then the demo is registered inside: the
# image read-only, another uid, no network, no home, nothing of this environment. OUT gets what
# came out, and what the image says about itself. Everything else is removed again.
#
# Ends with 77 and a reason where this machine lacks something.
set -euo pipefail

[ $# -ge 1 ] || { echo 'usage: build_and_run.sh OUT [PYTHON]' >&2; exit 64; }
source_folder=$(cd "$(dirname "$0")/../.." && pwd)
mkdir -p "$1"
out=$(cd "$1" && pwd)
python=${2:-python3}
uid=12345

skip() {
    echo "skipped: $*"
    exit 77
}

[ "$(id -u)" = 0 ] || skip 'only root may use debootstrap and buildah like this'
for tool in buildah debootstrap bwrap setpriv apt-get; do
    command -v "$tool" > /dev/null || skip "$tool is missing (make container-tools)"
done
suite=$(. /etc/os-release && [ "$ID" = debian ] && echo "$VERSION_CODENAME") || skip 'this is not Debian'
mirror=$(apt-get indextargets --format '$(CODENAME) $(COMPONENT) $(REPO_URI)' 2> /dev/null \
    | awk -v suite="$suite" '$1 == suite && $2 == "main" {print $3; exit}')
[ -n "$mirror" ] || skip "apt knows no mirror of $suite"

# As another user, without any right of root.
confined() {
    setpriv --reuid "$uid" --regid "$uid" --clear-groups --no-new-privs --bounding-set=-all \
        bwrap --unshare-all --die-with-parent --clearenv "$@"
}
confined --ro-bind / / true 2> /dev/null || skip 'users may not make namespaces here'

tmp=$(mktemp -d "${TMPDIR:-/tmp}/nephi-container.XXXXXX")
chmod 755 "$tmp"
build() {
    buildah --root "$tmp/store" --runroot "$tmp/run" --storage-driver "$driver" "$@"
}
clean() {
    if mountpoint -q "$tmp/root"; then umount "$tmp/root"; fi
    build rm --all > /dev/null 2>&1 || true
    # One file system alone: what debootstrap may have left mounted is not looked into.
    umount "$tmp/base/proc" "$tmp/base/sys" 2> /dev/null || true
    umount "$tmp/store/overlay" 2> /dev/null || true
    rm -rf --one-file-system "$tmp"
}
driver=overlay
trap clean EXIT
build info > /dev/null 2>&1 || driver=vfs
lap() {
    echo "[$SECONDS s] $*"
}

lap "a base of Debian $suite"
debootstrap --variant=minbase --include=python3,python3-venv "$suite" "$tmp/base" "$mirror" \
    > "$tmp/log" 2>&1 || { tail -n 3 "$tmp/log"; skip 'debootstrap could not make a base'; }
rm -rf "$tmp/base/var/cache/apt/archives" "$tmp/base/var/lib/apt/lists"
version='import sys; print("%d.%d" % sys.version_info[:2])'
[ "$("$python" -c "$version")" = "$(chroot "$tmp/base" python3 -c "$version")" ] \
    || skip "Debian $suite has another Python than $python, so its wheels do not fit"
base=$(build from scratch)
build add -q "$base" "$tmp/base" / > /dev/null
build commit -q --rm "$base" localhost/base > /dev/null
rm -rf --one-file-system "$tmp/base"

lap 'wheels'
cd "$source_folder"
"$python" - > "$tmp/requirements.txt" <<'END'
import configparser
import re

parser = configparser.ConfigParser()
parser.read('setup.cfg')
print(parser['options']['install_requires'], parser['options.extras_require']['brainmask'])
print('setuptools>=70.1')
with open('Dockerfile') as stream:
    print(re.search(r'\buv==[\d.]+', stream.read()).group())
END
"$python" -m pip wheel --quiet --disable-pip-version-check --wheel-dir "$tmp/wheels" \
    -c constraints.txt -r "$tmp/requirements.txt" > "$tmp/log" 2>&1 \
    || { tail -n 3 "$tmp/log"; skip 'pip found no wheels'; }

lap "the image ($driver)"
build bud --isolation chroot --build-context wheels="$tmp/wheels" --build-arg BASE=localhost/base \
    --build-arg PIP_ARGS='--no-index --find-links /wheels' --build-arg REVISION=test \
    -t nephi_pipe . > "$tmp/log" 2>&1 || { tail -n 40 "$tmp/log"; exit 1; }
build inspect --type image nephi_pipe > "$out/image.json"
build images --format '{{.Size}}' localhost/nephi_pipe > "$out/size.txt"
container=$(build from nephi_pipe)
mkdir "$tmp/root"
mount --bind "$(build mount "$container")" "$tmp/root"
mount -o remount,ro,bind "$tmp/root"

# Environment and entry point as the image says, one argument on a line.
"$python" - "$out/image.json" > "$tmp/arguments" <<'END'
import json
import sys

with open(sys.argv[1]) as stream:
    config = json.load(stream)['OCIv1']['config']
for pair in config['Env']:
    print('--setenv', *pair.split('=', 1), sep='\n')
print('--chdir', config['WorkingDir'], '--', sep='\n')
print(*config['Entrypoint'], sep='\n')
END
mapfile -t arguments < "$tmp/arguments"
entry=${arguments[-1]}
unset 'arguments[-1]'
mkdir "$tmp/out"
chown "$uid:$uid" "$tmp/out"

# The first argument is the command; what follows are its arguments.
run() {
    confined --ro-bind "$tmp/root" / --proc /proc --dev /dev --tmpfs /tmp \
        --bind "$tmp/out" /mnt "${arguments[@]}" "$@"
}

lap 'the place it runs in'
run sh -c 'id -u; for f in /probe "$HOME/probe" /opt/nephi/probe; do
    (echo > "$f") 2> /dev/null && echo "$f"; done; cat /proc/net/dev | grep -c : ' > "$out/place.txt" || true
run "$entry" --version > "$out/version.txt"
run nephi --version >> "$out/version.txt"
demo=$(run python -c 'from nephi_pipe.demo import DATASET; print(DATASET)')

lap 'the demo, both levels'
run "$entry" "$demo" /mnt/out participant group -w /mnt/work --sloppy --reference sub-45 \
    --derivatives "meshnet=$demo/derivatives/meshnet" > "$tmp/log" 2>&1 \
    || { cat "$tmp/log"; exit 1; }
cp "$tmp/log" "$out/app.txt"

lap 'two files'
run nephi register "$demo/sub-45/anat/sub-45_T1w.nii.gz" "$demo/sub-43/anat/sub-43_T1w.nii.gz" \
    -o /mnt/pair --steps 2 --report > "$out/pair.txt" 2>&1 || { cat "$out/pair.txt"; exit 1; }
cp -a "$tmp/out/." "$out/"
lap 'done'
