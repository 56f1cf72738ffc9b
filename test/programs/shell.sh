#!/bin/bash
# A shell script with a thousand short commands, from a shell that itself holds more than its
# budget: each command is a fork of a process with evicted pages, then an exec.
source "$(dirname "$0")/../lib/program.sh"
size=$((SCALE * 12000000))
shared_file "text.$size" text "$size"
cat >work.sh <<'EOS'
mapfile -t lines <"$1"
echo "${#lines[@]} lines"
for ((i = 0; i < 1000; i++)); do
    case $((i % 5)) in
    0) expr "$i" + 1 ;;
    1) echo "${lines[i * 7 % ${#lines[@]}]}" | sha256sum ;;
    2) x=$(basename "/a/b/$i") && echo "$x" ;;
    3) /bin/true && echo yes ;;
    4) printf '%s\n' "${lines[i]}" | wc -c ;;
    esac
done
printf '%s\n' "${lines[@]}" | sha256sum
EOS
native bash work.sh "$SHARED/text.$size" >native.out
budget_from_need
INSTANCES=3
managed bash work.sh "$SHARED/text.$size" >managed.out 2>program.err || fail "bash: $? $(tail -1 program.err)"
expect_same native.out managed.out
(($(stats 'map(.events.fork) | add // 0') >= 1000)) || fail "not a thousand forks were seen"
expect_paged
program_end
