#!/usr/bin/env bash
# A real S3 server on this machine: one-node Ceph (monitor, object store in memory, manager, RADOS gateway) on loopback.
#
#   ceph.sh DIR PORT KEY SECRET      everything stays in DIR; stop it with: kill $(cat DIR/run/*.pid)
#
# Debian: apt-get install --no-install-recommends ceph-mon ceph-osd ceph-mgr radosgw ceph-common uuid-runtime curl
set -euo pipefail
DIR=$(realpath -m "${1:?directory}") PORT=${2:?port} KEY=${3:?access key} SECRET=${4:?secret key}
mkdir -p "$DIR"/{mon,osd,mgr,run,log}
export CEPH_CONF=$DIR/ceph.conf
RING=$DIR/keyring
MAP="[v2:127.0.0.1:3300,v1:127.0.0.1:6789]"
FSID=$(uuidgen)
cat > "$CEPH_CONF" <<CONF
[global]
fsid = $FSID
mon host = $MAP
keyring = $RING
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
mon allow pool size one = true
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
run dir = $DIR/run
admin socket = $DIR/run/\$name.asok
pid file = $DIR/run/\$name.pid
log file = $DIR/log/\$name.log
mon data = $DIR/mon
osd data = $DIR/osd
mgr data = $DIR/mgr
mon data avail crit = 1
mon data avail warn = 2
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:$PORT
rgw gc obj min wait = 5
rgw gc processor period = 10
rgw gc processor max time = 10
CONF

start() {
    ceph-authtool --create-keyring "$RING" --gen-key -n mon. --cap mon 'allow *'
    ceph-authtool "$RING" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *' --cap mgr 'allow *'
    ceph-authtool "$RING" --gen-key -n client.rgw.a --cap mon 'allow rwx' --cap osd 'allow rwx' --cap mgr 'allow *'
    ceph-authtool "$RING" --gen-key -n osd.0 --cap mon 'allow profile osd' --cap osd 'allow *' --cap mgr 'allow profile osd'
    ceph-authtool "$RING" --gen-key -n mgr.x --cap mon 'allow profile mgr' --cap osd 'allow *'
    monmaptool --create --fsid "$FSID" --addv a "$MAP" "$DIR/monmap"
    ceph-mon --mkfs -i a --monmap "$DIR/monmap" --keyring "$RING"
    ceph-mon -i a
    timeout 30 ceph auth import -i "$RING"
    local uuid
    uuid=$(uuidgen)
    timeout 30 ceph osd new "$uuid" 0
    ceph-osd -i 0 --mkfs --osd-uuid "$uuid"
    ceph-osd -i 0
    ceph-mgr -i x
    timeout 120 radosgw -n client.rgw.a
    for _ in $(seq 60); do
        curl --silent --max-time 2 "http://127.0.0.1:$PORT/" && break
        sleep 1
    done
    timeout 60 radosgw-admin user create --uid=cmapkd --display-name=cmapkd --access-key="$KEY" --secret-key="$SECRET"
}

start > "$DIR/log/setup.log" 2>&1 || { tail -5 "$DIR/log/setup.log" >&2; exit 1; }
