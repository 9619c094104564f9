#!/bin/sh
# producer | xz | consumer: three processes. Usage: pipeline.sh LINES OUTPUT
# The output is byte-identical to that of an undisturbed run.
lines=$1
output=$2
awk -v n="$lines" 'BEGIN { for (i = 1; i <= n; i++) { print i, (i * 7919) % 104729, "the quick brown fox"; if (i % 200 == 0) { fflush(); system("sleep 0.01") } } }' |
  xz -1 -T1 -c |
  cat > "$output"
echo "done"
exec sleep 1000000
