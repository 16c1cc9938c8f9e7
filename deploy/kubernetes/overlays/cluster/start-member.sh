#!/bin/sh
# Starts a member. It keeps its id in /data/nodes.conf; after a restart it announces its new address to the others.
set -eu
sh /etc/redis/rejoin.sh &
exec redis-server /etc/redis/redis.conf --cluster-enabled yes --cluster-config-file /data/nodes.conf \
  --cluster-node-timeout 5000 --cluster-announce-ip "$POD_IP"
