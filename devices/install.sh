#!/bin/sh
# Installs or updates the Skerry runtime on a device with systemd. Run it again as often as you like.
#
# A new version gets a virtual environment of its own; one symbolic link is switched when it is complete, so a power
# cut leaves the old version or the new one. The version before stays for a way back.
set -eu

usage() {
    cat <<'TEXT'
usage: install.sh [options]
  --wheels DIR     install from the wheels in DIR, without any network
  --package SPEC   what to install (default: skerry[onnx]); on a device without AVX or for TFLite: skerry[tflite]
  --config FILE    install FILE as /etc/skerry/device.toml, unless one is there
  --files DIR      where the unit and the sysusers file are (default: systemd/ beside this script)
  --no-units       do not install them: a package did
  --bin DIR        where the command skerry-runtime is linked (default: /usr/local/bin)
  --python PROGRAM interpreter, 3.11 or newer (default: python3)
  --root DIR       install below DIR, without users and services: for images
  --no-start       do not start the service
  --dry-run        say what would be done
TEXT
}

die() { echo "install.sh: $1" >&2; exit 1; }

here=$(cd "$(dirname "$0")" && pwd)
wheels='' package='skerry[onnx]' config='' files="$here/systemd" units=yes bin=/usr/local/bin
python=python3 root='' start=yes dry=no
while [ $# -gt 0 ]; do
    case $1 in
        --wheels | --package | --config | --files | --bin | --python | --root)
            [ $# -ge 2 ] || die "$1 needs a value"
            case $1 in
                --wheels) wheels=$2 ;;
                --package) package=$2 ;;
                --config) config=$2 ;;
                --files) files=$2 ;;
                --bin) bin=$2 ;;
                --python) python=$2 ;;
                --root) root=${2%/} ;;
            esac
            shift 2 ;;
        --no-units) units=no; shift ;;
        --no-start) start=no; shift ;;
        --dry-run) dry=yes; shift ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "unknown option $1" ;;
    esac
done

run() {
    if [ $dry = yes ]; then echo "would run: $*"; else "$@"; fi
}

# --- checks, before anything is changed -------------------------------------------------------------------------

if [ $dry = no ] && [ -z "$root" ] && [ "$(id -u)" != 0 ]; then die "run it as root, or with --dry-run"; fi
command -v "$python" >/dev/null || die "there is no $python: install Python 3.11 or newer"
"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "$python is older than Python 3.11"
"$python" -c 'import ensurepip, venv' 2>/dev/null || die "$python has no venv: on Debian install python3-venv"
if [ -n "$wheels" ]; then
    [ -d "$wheels" ] || die "there is no folder $wheels"
    wheels=$(cd "$wheels" && pwd)
    ls "$wheels"/skerry-*.whl >/dev/null 2>&1 || die "$wheels has no wheel of skerry"
fi
[ -z "$config" ] || [ -r "$config" ] || die "$config cannot be read"
if [ $units = yes ]; then
    for file in skerry-runtime.service skerry.sysusers; do
        [ -r "$files/$file" ] || die "$files has no $file: name its folder with --files"
    done
fi

# --- user and folders -------------------------------------------------------------------------------------------

etc=$root/etc/skerry
if [ -n "$root" ]; then
    run install -d -m 750 "$etc"
    run install -d -m 700 "$root/var/lib/skerry"
else
    if ! getent passwd skerry >/dev/null; then
        getent group skerry >/dev/null || run groupadd --system skerry
        run useradd --system --gid skerry --home-dir /var/lib/skerry --no-create-home \
            --shell /usr/sbin/nologin --comment 'Skerry runtime' skerry
    fi
    run install -d -m 750 -o root -g skerry "$etc"
    run install -d -m 700 -o skerry -g skerry /var/lib/skerry
fi

# --- the program ------------------------------------------------------------------------------------------------

# The same input has the same name, so that a second run finds it complete.
name=$({
    echo "$package"
    "$python" -c 'import sys; print(sys.version)'
    if [ -n "$wheels" ]; then (cd "$wheels" && sha256sum ./*.whl); fi
} | sha256sum | cut -c1-16)
opt=$root/opt/skerry
venv=$opt/$name
if [ -e "$venv/complete" ]; then
    echo "$package is installed in $venv"
else
    run rm -rf "$venv"
    run install -d -m 755 "$opt"
    run "$python" -m venv "$venv"
    if [ -n "$wheels" ]; then
        run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index \
            --find-links "$wheels" "$package"
    else
        run "$venv/bin/python" -m pip install --quiet --disable-pip-version-check "$package"
    fi
    run "$venv/bin/skerry-runtime" --version
    run touch "$venv/complete"
    run sync
fi
before=$(readlink "$opt/current" 2>/dev/null || true)
if [ "$before" != "$name" ]; then
    run ln -sfn "$name" "$opt/current.new"
    run mv -T "$opt/current.new" "$opt/current"
    # Older versions go; the one before stays.
    for old in "$opt"/*/; do
        old=$(basename "$old")
        case $old in
            "$name" | "$before" | current | '*') ;;
            *) run rm -rf "${opt:?}/$old" ;;
        esac
    done
fi
run install -d -m 755 "$root$bin"
run ln -sfn /opt/skerry/current/bin/skerry-runtime "$root$bin/skerry-runtime"

# --- configuration and service ----------------------------------------------------------------------------------

if [ -n "$config" ] && [ ! -e "$etc/device.toml" ]; then
    if [ -n "$root" ]; then
        run install -m 640 "$config" "$etc/device.toml"
    else
        run install -m 640 -o root -g skerry "$config" "$etc/device.toml"
    fi
fi
if [ $units = yes ]; then
    run install -d -m 755 "$root/etc/systemd/system" "$root/etc/sysusers.d"
    run install -m 644 "$files/skerry-runtime.service" "$root/etc/systemd/system/skerry-runtime.service"
    run install -m 644 "$files/skerry.sysusers" "$root/etc/sysusers.d/skerry.conf"
fi
if [ -n "$root" ]; then
    exit 0
elif [ ! -d /run/systemd/system ]; then
    echo "systemd does not run here: start 'skerry-runtime run' by other means"
elif [ ! -e "$etc/device.toml" ]; then
    run systemctl daemon-reload
    echo "Next: write $etc/device.toml (mode 640, group skerry), then: systemctl enable --now skerry-runtime"
else
    run systemctl daemon-reload
    run systemctl enable --quiet skerry-runtime
    if [ $start = yes ]; then run systemctl restart skerry-runtime; fi
    echo "Next: skerry-runtime doctor"
fi
