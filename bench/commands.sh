#!/bin/bash
# commands.sh N: so many short commands, one after the other; none lives long enough to be managed.
for ((i = 0; i < $1; i++)); do
    case $((i % 4)) in
    0) /bin/true ;;
    1) /usr/bin/expr $i + 1 ;;
    2) /usr/bin/basename /a/b/$i ;;
    3) echo $i | /bin/cat ;;
    esac
done
