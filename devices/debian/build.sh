#!/bin/sh
# Builds the Debian package skerry-runtime from a folder of wheels, with dpkg-deb alone and no network.
#
# The package carries the wheels; its postinst makes the virtual environment from them by install.sh, so that numpy
# and the engine are those that were tested and not the distribution's. The same input gives the same bytes.
set -eu

usage() {
    cat <<'TEXT'
usage: build.sh --wheels DIR --out DIR [--arch ARCH] [--package SPEC]
  --wheels DIR    skerry-VERSION-*.whl and everything that it needs on the device
  --out DIR       where the package is written
  --arch ARCH     Debian's name of the device's processor (default: this machine's)
  --package SPEC  what the device installs (default: skerry[onnx])
To fill the folder: python3 -m pip download --dest DIR --only-binary :all: --platform manylinux_2_28_aarch64 \
  --python-version 3.11 'skerry[onnx]'
TEXT
}

die() { echo "build.sh: $1" >&2; exit 1; }

devices=$(cd "$(dirname "$0")/.." && pwd)
wheels='' out='' arch='' package='skerry[onnx]'
while [ $# -gt 0 ]; do
    case $1 in
        --wheels | --out | --arch | --package)
            [ $# -ge 2 ] || die "$1 needs a value"
            case $1 in
                --wheels) wheels=$2 ;;
                --out) out=$2 ;;
                --arch) arch=$2 ;;
                --package) package=$2 ;;
            esac
            shift 2 ;;
        -h | --help) usage; exit 0 ;;
        *) usage >&2; die "unknown option $1" ;;
    esac
done
if [ -z "$wheels" ] || [ -z "$out" ]; then usage >&2; die "--wheels and --out are needed"; fi
[ -d "$wheels" ] || die "there is no folder $wheels"
[ -d "$out" ] || die "there is no folder $out"
[ -n "$arch" ] || arch=$(dpkg --print-architecture)
set -- "$wheels"/skerry-*.whl
if [ $# != 1 ] || [ ! -e "$1" ]; then die "$wheels must have exactly one wheel of skerry"; fi
version=$(basename "$1" | cut -d- -f2)

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
tree=$work/tree
umask 022
mkdir -p "$tree/DEBIAN" "$tree/usr/lib/systemd/system" "$tree/usr/lib/sysusers.d" "$tree/usr/share/skerry/wheels" \
    "$tree/usr/share/doc/skerry-runtime"
install -m 644 "$wheels"/*.whl "$tree/usr/share/skerry/wheels/"
install -m 755 "$devices/install.sh" "$tree/usr/share/skerry/install.sh"
install -m 644 "$devices/systemd/skerry-runtime.service" "$tree/usr/lib/systemd/system/"
install -m 644 "$devices/systemd/skerry.sysusers" "$tree/usr/lib/sysusers.d/skerry.conf"
install -m 644 "$devices/debian/copyright" "$tree/usr/share/doc/skerry-runtime/copyright"
size=$(du -sk "$tree" | cut -f1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" "$devices/debian/control" \
    >"$tree/DEBIAN/control"
for script in postinst prerm postrm; do
    sed -e "s/@PACKAGE@/$package/" "$devices/debian/$script" >"$tree/DEBIAN/$script"
    chmod 755 "$tree/DEBIAN/$script"
done
# One time for every file: the newest of the wheels, or what the caller says.
: "${SOURCE_DATE_EPOCH:=$(stat -c %Y "$wheels"/*.whl | sort -n | tail -1)}"
export SOURCE_DATE_EPOCH
find "$tree" -exec touch --no-dereference --date="@$SOURCE_DATE_EPOCH" {} +
file=$out/skerry-runtime_${version}_$arch.deb
dpkg-deb --root-owner-group --build "$tree" "$file" >/dev/null
echo "$file"
