/* Disk of the page store: blocks, contents, folder checks, a full and a failing disk. */
#include "../../dms/store_disk.h"

#include <dirent.h>
#include <errno.h>
#include <sched.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#define MIB (1ull << 20)

static char dir[64];
static _Alignas(4096) unsigned char batch[64 * DISK_BLOCK_SIZE];

static int make_dir(void **state)
{
    strcpy(dir, "/var/tmp/edm-test-disk-XXXXXX");
    return mkdtemp(dir) ? 0 : -1;
}

static int remove_dir(void **state)
{
    unsetenv("EDM_TEST_DISK_ERROR");
    return rmdir(dir); /* fails when anything was left behind */
}

static void open_disk(struct store_disk *d, uint64_t bytes)
{
    char err[256] = "";
    if (store_disk_init(d, dir, bytes, err, sizeof err))
        fail_msg("%s", err);
}

static void extend(struct store_disk *d)
{
    store_disk_extend_end(d, store_disk_extend_run(d));
}

static void what_is_written_is_read(void **state)
{
    struct store_disk d;
    unsigned char back[DISK_BLOCK_SIZE + 8];
    uint32_t start, n;
    open_disk(&d, MIB);
    assert_int_equal(store_disk_room(&d), 256);
    assert_true(store_disk_wants_extend(&d, 64));
    extend(&d);
    assert_false(store_disk_wants_extend(&d, 64));
    for (uint32_t i = 0; i < 4; i++) {
        n = store_disk_get(&d, 64, &start);
        assert_int_equal(n, 64);
        for (uint32_t k = 0; k < n; k++)
            memset(batch + k * DISK_BLOCK_SIZE, (int)(start + k), DISK_BLOCK_SIZE);
        assert_int_equal(store_disk_write(&d, start, n, batch), 0);
    }
    assert_int_equal(store_disk_get(&d, 64, &start), 0);
    assert_int_equal(store_disk_room(&d), 0);
    for (uint32_t b = 0; b < 256; b++) { /* not aligned, and aligned */
        assert_int_equal(store_disk_read(&d, b, 1, back + 8), 0);
        assert_int_equal(back[8 + b % 4096], b & 0xff);
        assert_int_equal(store_disk_read(&d, b, 1, batch), 0);
        assert_int_equal(batch[4095], b & 0xff);
    }
    store_disk_fini(&d);
}

static void freed_blocks_are_found_again(void **state)
{
    struct store_disk d;
    uint32_t start, total = 0, n;
    open_disk(&d, 2 * MIB);
    extend(&d);
    while ((n = store_disk_get(&d, 100, &start)))
        total += n;
    assert_int_equal(total, 512);
    for (uint32_t b = 63; b < 67; b++) /* a run across a word of the map */
        store_disk_put(&d, b);
    store_disk_put(&d, 511);
    assert_int_equal(store_disk_room(&d), 5);
    bool run = false, single = false;
    for (int i = 0; i < 2; i++) {
        n = store_disk_get(&d, 64, &start);
        run |= n == 4 && start == 63;
        single |= n == 1 && start == 511;
    }
    assert_true(run && single);
    assert_int_equal(store_disk_get(&d, 64, &start), 0);
    store_disk_fini(&d);
}

/* Where only single blocks are free the file grows rather than that neighbours are parted; but not
 * to more than twice what is used. */
static void scattered_room_makes_the_file_grow(void **state)
{
    struct store_disk d;
    uint32_t start, granted;
    open_disk(&d, 256 * MIB);
    extend(&d);
    granted = d.granted;
    while (d.used < granted)
        assert_int_equal(store_disk_get(&d, 64, &start), 64);
    for (uint32_t b = 0; b < granted; b += 3)
        store_disk_put(&d, b);
    assert_int_equal(store_disk_get(&d, 64, &start), 0);
    assert_true(store_disk_wants_extend(&d, 64));
    extend(&d);
    assert_int_equal(store_disk_get(&d, 64, &start), 64);
    assert_int_equal(start, granted);
    for (uint32_t b = granted; b < granted + 64; b++)
        store_disk_put(&d, b);
    for (uint32_t b = 1; b < granted; b += 3)
        store_disk_put(&d, b);
    granted = d.granted;
    while (store_disk_get(&d, 64, &start) == 64) /* what is free in runs, first */
        ;
    assert_int_equal(d.granted, granted);
    store_disk_fini(&d);
}

static void empty_file_gives_its_space_back(void **state)
{
    struct store_disk d;
    struct stat st;
    uint32_t start;
    open_disk(&d, MIB);
    extend(&d);
    assert_int_equal(store_disk_get(&d, 1, &start), 1);
    store_disk_trim(&d);
    assert_int_equal(d.granted, 256);
    store_disk_put(&d, start);
    store_disk_trim(&d);
    assert_int_equal(fstat(d.fd, &st), 0);
    assert_int_equal(st.st_blocks, 0);
    extend(&d);
    assert_int_equal(store_disk_get(&d, 64, &start), 64);
    store_disk_fini(&d);
}

static void folder_is_made_private(void **state)
{
    char err[256] = "", sub[80];
    struct store_disk d;
    struct stat st;
    snprintf(sub, sizeof sub, "%s/sub", dir);
    assert_int_equal(store_disk_init(&d, sub, MIB, err, sizeof err), 0);
    assert_int_equal(stat(sub, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0700);
    assert_int_equal(fstat(d.fd, &st), 0);
    assert_int_equal(st.st_nlink, 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    store_disk_fini(&d);
    assert_int_equal(rmdir(sub), 0);
}

static void refused(const char *path, int code, const char *word)
{
    struct store_disk d;
    char err[256] = "";
    assert_int_equal(store_disk_init(&d, path, MIB, err, sizeof err), code);
    if (!strstr(err, word))
        fail_msg("\"%s\" does not say \"%s\"", err, word);
}

static void wrong_folders_are_refused(void **state)
{
    char sub[80];
    refused("/proc/self/no/such", -ENOENT, "cannot be made");
    assert_int_equal(chmod(dir, 0777), 0);
    refused(dir, -EPERM, "mode 777");
    assert_int_equal(chmod(dir, 0700), 0);
    snprintf(sub, sizeof sub, "%s/link", dir);
    assert_int_equal(symlink("/var/tmp", sub), 0);
    struct store_disk d;
    char err[256] = "";
    assert_int_not_equal(store_disk_init(&d, sub, MIB, err, sizeof err), 0);
    assert_int_equal(unlink(sub), 0);
    if (geteuid() == 0) {
        assert_int_equal(chown(dir, 12345, (gid_t)-1), 0);
        refused(dir, -EPERM, "uid 12345");
        assert_int_equal(chown(dir, 0, (gid_t)-1), 0);
    }
}

static void faults_are_errors(void **state)
{
    struct store_disk d;
    uint32_t start;
    const char *const names[] = {"EIO", "SHORT"};
    for (int i = 0; i < 2; i++) {
        setenv("EDM_TEST_DISK_ERROR", names[i], 1);
        open_disk(&d, MIB);
        extend(&d);
        assert_int_equal(store_disk_get(&d, 8, &start), 8);
        int rc = store_disk_write(&d, start, 8, batch);
        assert_int_equal(rc, -EIO);
        store_disk_fail(&d, rc);
        assert_int_equal(store_disk_room(&d), 0);
        store_disk_fini(&d);
    }
    setenv("EDM_TEST_DISK_ERROR", "ENOSPC", 1);
    open_disk(&d, MIB);
    assert_int_equal(store_disk_extend_run(&d), -ENOSPC);
    store_disk_extend_end(&d, -ENOSPC);
    assert_int_equal(store_disk_room(&d), 0);
    store_disk_fini(&d);
    setenv("EDM_TEST_DISK_ERROR", "READ", 1);
    open_disk(&d, MIB);
    extend(&d);
    assert_int_equal(store_disk_get(&d, 1, &start), 1);
    assert_int_equal(store_disk_write(&d, start, 1, batch), 0);
    assert_int_equal(store_disk_read(&d, start, 1, batch), -EIO);
    store_disk_fini(&d);
}

static void limited_file_size_is_a_full_disk(void **state)
{
    struct store_disk d;
    struct rlimit old, r;
    uint32_t start, wrote = 0, n;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    r = old;
    r.rlim_cur = 10 * MIB;
    signal(SIGXFSZ, SIG_IGN);
    open_disk(&d, 64 * MIB);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &r), 0);
    for (int i = 0; i < 100 && store_disk_wants_extend(&d, 100000); i++)
        extend(&d);
    assert_in_range(store_disk_room(&d), 9 * 256, 10 * 256);
    while ((n = store_disk_get(&d, 64, &start))) {
        assert_int_equal(store_disk_write(&d, start, n, batch), 0);
        wrote += n;
    }
    assert_in_range(wrote, 9 * 256, 10 * 256);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    store_disk_fini(&d);
}

/* A tmpfs of our own over /var/tmp, with the default folder in it of another user. */
static void default_folder_of_another_user(void **state)
{
    struct store_disk d;
    char err[256] = "";
    pid_t pid = fork();
    if (pid == 0) {
        if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
            mount("edm-test", "/var/tmp", "tmpfs", 0, "size=4m,mode=1777"))
            _exit(77);
        bool ok = mkdir(DISK_PATH_DEFAULT, 0700) == 0; /* root's */
        ok = ok && setresgid(65534, 65534, 65534) == 0 && setresuid(65534, 65534, 65534) == 0;
        ok = ok && store_disk_init(&d, DISK_PATH_DEFAULT, MIB, err, sizeof err) == 0;
        ok = ok && store_disk_init(&d, "/var/tmp", MIB, err, sizeof err) == 0;
        ok = ok && store_disk_init(&d, "/var/tmp/own", MIB, err, sizeof err) == 0;
        ok = ok && store_disk_init(&d, "/var/tmp/edm/x", MIB, err, sizeof err) == -EACCES;
        _exit(!ok);
    }
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 77)
        skip();
    assert_int_equal(status, 0);
}

static void full_file_system_is_seen_before_writing(void **state)
{
    struct store_disk d;
    uint32_t start;
    if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) ||
        mount("edm-test", dir, "tmpfs", 0, "size=2m,mode=700"))
        skip();
    open_disk(&d, 64 * MIB);
    int guard = 0;
    while (store_disk_wants_extend(&d, 100000) && guard++ < 100)
        extend(&d);
    uint32_t room = store_disk_room(&d), wrote = 0, n;
    assert_true(room > 256 && room <= 512);
    while ((n = store_disk_get(&d, 64, &start))) {
        assert_int_equal(store_disk_write(&d, start, n, batch), 0);
        wrote += n;
    }
    assert_int_equal(wrote, room);
    store_disk_fini(&d);
    umount2(dir, MNT_DETACH);
}

static void nothing_has_a_name(void **state)
{
    struct store_disk d;
    open_disk(&d, MIB);
    DIR *f = opendir(dir);
    for (struct dirent *e; (e = readdir(f));)
        assert_int_equal(e->d_name[0], '.');
    closedir(f);
    store_disk_fini(&d);
}

int main(void)
{
#define T(f) cmocka_unit_test_setup_teardown(f, make_dir, remove_dir)
    const struct CMUnitTest tests[] = {
        T(what_is_written_is_read),
        T(freed_blocks_are_found_again),
        T(scattered_room_makes_the_file_grow),
        T(empty_file_gives_its_space_back),
        T(folder_is_made_private),
        T(wrong_folders_are_refused),
        T(faults_are_errors),
        T(limited_file_size_is_a_full_disk),
        T(default_folder_of_another_user),
        T(full_file_system_is_seen_before_writing),
        T(nothing_has_a_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
