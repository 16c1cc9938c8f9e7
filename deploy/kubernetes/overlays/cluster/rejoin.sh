#!/bin/sh
# Members know each other by address, and a restart of all members changes every address. While this runs, it
# introduces the member to those of MEMBERS that it knows by id and does not reach. It ignores unknown members: all are
# unknown until form-cluster.sh has run, which requires that none have met.
set -u
ask() {
  timeout 2 redis-cli "$@" 2>/dev/null
}
while sleep 5; do
  nodes=$(ask -h "$POD_IP" cluster nodes) || continue
  case $nodes in *fail* | *noaddr* | *disconnected*) ;; *) continue ;; esac
  for member in $MEMBERS; do
    # The id and address that it reports.
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
