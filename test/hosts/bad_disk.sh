#!/bin/bash
# Two copies of each page, on the disks of two hosts; the file system of one of them fails under the
# program. It goes on with the other copies, and no page is lost.
source "$(dirname "$0")/hosts.sh"
need mkfs.ext4 losetup

refused() {
    rank_stat h1 .server.refused_pages
}

refuses() {
    (($(refused) > 500))
}

pages_on_disk() {
    (($(rank_stat h2 .server.disk_store.pages) > 2000))
}

hosts_up 3
truncate -s 256M h2.image && mkfs.ext4 -q -m 0 h2.image || fail "no file system can be made"
host_run h2 sh -c "mkdir -p /run/disk && mount -t ext4 -o loop $CASE_TMP/h2.image /run/disk && chmod 700 /run/disk" ||
    skip "this kernel has no loop devices"
job_start 3 -o memory_store=8M -o compression=none
walker_start h1 -o placement=remote -o replicas=2
until_true 20 pages_on_disk || fail "h2 has $(rank_stat h2 .server.disk_store) on disk"
host_run h2 /usr/bin/python3 "$TEST_ROOT/test/disk/shut_down.py" /run/disk || fail "ext4 cannot be shut down"
until_true 20 refuses || fail "only $(refused) pages were refused: $(rank_stat h1 .server.peers)"
walker_goes_on h1
! host_run h1 grep -m 3 'is lost' /run/edm/dms.log || fail "pages were lost though there are two copies"
said=$(refused)
walkers_end
stop_job
expect_clean h1 h3
hosts_down
echo "note: $said pages refused"
