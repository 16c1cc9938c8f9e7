#!/bin/sh
# Starts a Sentinel. It keeps its id and what it has learned in /data; the first start has nothing to keep.
set -eu
me=$(hostname).sentinel
if [ ! -f /data/sentinel.conf ]; then
  # The Sentinel resolves the primary's name when it reads its configuration.
  until getent hosts redis-0.redis >/dev/null; do
    echo "waiting for redis-0.redis to have an address"
    sleep 1
  done
  cat >/data/sentinel.conf.new <<CONF
dir /data
port 26379
protected-mode no
sentinel resolve-hostnames yes
sentinel announce-hostnames yes
sentinel announce-ip $me
sentinel monitor elections redis-0.redis 6379 2
sentinel down-after-milliseconds elections 5000
sentinel failover-timeout elections 30000
sentinel parallel-syncs elections 1
CONF
  mv /data/sentinel.conf.new /data/sentinel.conf
fi
exec redis-sentinel /data/sentinel.conf
