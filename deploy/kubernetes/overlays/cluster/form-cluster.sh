#!/bin/sh
# Makes one cluster of the servers named in MEMBERS, if they are none yet. Does nothing the second time.
set -eu
addresses=
for member in $MEMBERS; do
  host=${member%:*} port=${member#*:}
  until [ "$(timeout 2 redis-cli -h "$host" -p "$port" ping 2>/dev/null)" = PONG ]; do
    echo "waiting for $member"
    sleep 1
  done
  known=$(redis-cli -h "$host" -p "$port" cluster info | sed -n 's/^cluster_known_nodes:\([0-9]*\).*/\1/p')
  if [ "$known" -gt 1 ]; then
    echo "$member is in a cluster already"
    exit 0
  fi
  # Members meet by address, not by name.
  address=$(getent hosts "$host" | awk '{print $1; exit}')
  addresses="$addresses $address:$port"
done
# shellcheck disable=SC2086 # a list of words
redis-cli --cluster create $addresses --cluster-replicas "${REPLICAS:-1}" --cluster-yes
