#!/bin/sh
# Starts a server in the role that the Sentinels name: a replica of the primary, or the primary itself.
# If no Sentinel replies, as on the first start, redis-0 is the primary; Sentinels correct that if it is not.
set -eu
me=$(hostname).redis
primary=
for sentinel in sentinel-0.sentinel sentinel-1.sentinel sentinel-2.sentinel; do
  primary=$(timeout 2 redis-cli -h "$sentinel" -p 26379 sentinel get-master-addr-by-name elections 2>/dev/null |
    head -n 1) || true
  case $primary in redis-*) break ;; *) primary= ;; esac
done
[ -n "$primary" ] || primary=redis-0.redis

# Sentinels write into the configuration.
cp /etc/redis/redis.conf /data/redis.conf
set -- /data/redis.conf --replica-announce-ip "$me"
[ "$primary" = "$me" ] || set -- "$@" --replicaof "$primary" 6379
exec redis-server "$@"
