#!/bin/bash
# perl: a large hash, arrays, sort, regular expressions, a forked child that reads all of it.
source "$(dirname "$0")/../lib/program.sh"
need perl
cat >work.pl <<'EOP'
use strict;
use Digest::SHA;
my $n = shift;
my (%h, @a);
for my $i (1 .. $n) {
    my $k = ($i * 2654435761) % 4294967291;
    $h{"k$k"} = [ $i, "value $k " x 60 ];
    push @a, "line $k of $i";
}
my $d = Digest::SHA->new(256);
$d->add("$_=@{$h{$_}}\n") for sort grep { /7$/ } keys %h;
my @odd = grep { /[13579] of \d*7$/ } @a;
s/line (\d+)/$1 line/ for @odd;
$d->add(join("\n", sort { $b cmp $a } @odd));
delete $h{$_} for grep { /3$/ } keys %h;
my $digest = $d->hexdigest;
my $pid = open(my $child, "-|") // die;
if (!$pid) {
    my $c = Digest::SHA->new(256);
    $c->add("$_\n") for @a;
    $c->add($h{"k" . ($_ * 2654435761) % 4294967291}[1] // "gone") for map { $_ * 31 } 1 .. $n / 31;
    print $c->hexdigest, "\n";
    exit 0;
}
chomp(my $from_child = <$child>);
close $child or die "child: $?";
print scalar(keys %h), " ", scalar(@odd), " $digest $from_child\n";
EOP
native perl work.pl $((SCALE * 80000)) >native.out
budget_from_need
INSTANCES=2
managed perl work.pl $((SCALE * 80000)) >managed.out 2>program.err || fail "perl: $? $(tail -1 program.err)"
expect_same native.out managed.out
(($(stats 'map(.events.fork) | add // 0') > 0)) || fail "no fork was seen"
expect_paged
program_end
