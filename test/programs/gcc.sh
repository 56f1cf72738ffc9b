#!/bin/bash
# gcc -O2 on a large generated file: the memory is that of cc1, a child that gcc executes.
source "$(dirname "$0")/../lib/program.sh"
need gcc perl
perl -e '
    my $n = shift;
    print "typedef struct { int a[16]; double d; const char *s; } t;\nextern int sink(t *);\n";
    for my $i (1 .. $n) {
        my $m = $i * 7919 % 1000;
        print "static int f$i(t *p, int k)\n{\n    int r = $m;\n    for (int i = 0; i < k; i++) {\n";
        print "        p->a[i & 15] += r * $i + i;\n        if ((p->a[(i + $m) & 15] ^ $i) % 7 == 3)\n";
        print "            r += sink(p);\n        p->d += r / ($m + 1.5);\n        p->s = \"text $i\";\n    }\n";
        print "    switch (k % 5) {\n" . join("", map { "    case $_: r ^= p->a[$_] << $_; break;\n" } 0 .. 4);
        print "    }\n    return r" . ($i > 1 ? " + f" . ($i - 1) . "(p, k - 1)" : "") . ";\n}\n";
    }
    print "int run(t *p)\n{\n    return f$n(p, 40);\n}\n";' $((SCALE * 2500)) >big.c
native gcc -O2 -fno-inline -S -o native.s big.c
budget_from_need
managed gcc -O2 -fno-inline -S -o managed.s big.c 2>program.err || fail "gcc: $? $(tail -1 program.err)"
expect_same native.s managed.s
expect_paged
program_end
