#!/bin/sh
# Members know each other by address, and after a restart of all every one has another. This introduces the member to
# those of MEMBERS that it knows by id and does not reach, for as long as it runs. It leaves strangers alone: all are
# strangers until form-cluster.sh has run, which wants none to have met.
set -u
ask() {
  timeout 2 redis-cli "$@" 2>/dev/null
}
while sleep 5; do
  nodes=$(ask -h "$POD_IP" cluster nodes) || continue
  case $nodes in *fail* | *noaddr* | *disconnected*) ;; *) continue ;; esac
  for member in $MEMBERS; do
    # Its id and its address, as it says itself.
    itself=$(ask -h "${member%:*}" -p "${member##*:}" cluster nodes |
      awk '$3 ~ /myself/ { split($2, address, "@"); print $1, address[1] }')
    id=${itself% *} address=${itself#* }
    [ -n "$id" ] || continue
    if echo "$nodes" | awk -v id="$id" '$1 == id && ($3 ~ /fail|noaddr/ || $8 == "disconnected") { lost = 1 }
      END { exit !lost }'; then
      echo "meeting $member again, which is at $address now"
      ask -h "$POD_IP" cluster meet "${address%:*}" "${address##*:}"
    fi
  done
done
