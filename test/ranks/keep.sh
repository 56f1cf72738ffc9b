# A program that fills 48 MiB, waits, and then says how many of its pages are wrong.

KEEP_FLAGS=()

# keep_start [KEY=VALUE...]: returns when it has filled them; sets KEEP_PID. KEEP_FLAGS is what else
# edm run is told.
keep_start() {
    local opts=() o
    for o in "$@"; do
        opts+=(-o "$o")
    done
    cat >"$CASE_TMP/keep.py" <<'PY'
import sys
size = 48 << 20
memory = bytearray(size)
for at in range(0, size, 4096):
    memory[at : at + 8] = (at * 7 + 1).to_bytes(8, "little")
print("filled", flush=True)
sys.stdin.readline()
wrong = sum(int.from_bytes(memory[at : at + 8], "little") != at * 7 + 1 for at in range(0, size, 4096))
print("wrong", wrong, flush=True)
PY
    mkfifo "$CASE_TMP/go"
    "$EDM" run -m 16M "${KEEP_FLAGS[@]}" "${opts[@]}" -- /usr/bin/python3 "$CASE_TMP/keep.py" \
        <"$CASE_TMP/go" >"$CASE_TMP/out" 2>&1 &
    KEEP_PID=$!
    exec {KEEP_GO}>"$CASE_TMP/go"
    until_true 40 grep -q filled "$CASE_TMP/out" || fail "it does not fill: $(<"$CASE_TMP/out")"
}

# keep_end: it must find all of them right
keep_end() {
    echo >&"$KEEP_GO"
    wait "$KEEP_PID" || fail "status $?: $(<"$CASE_TMP/out"); server: $(tail -3 "$CASE_TMP/server.log")"
    [[ $(tail -1 "$CASE_TMP/out") == 'wrong 0' ]] || fail "$(<"$CASE_TMP/out")"
}
