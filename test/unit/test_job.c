/* The file of a job: what is written is read, one at a time has it, what is stale is seen. */
#include "dms/job.h"
#include <errno.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/edm-job-XXXXXX", sock[64], err[200];

static struct job opened(bool create)
{
    struct job j;

    assert_int_equal(job_open(&j, sock, create, err, sizeof(err)), 0);
    return j;
}

static void save(struct job *j, pid_t mpiexec, uint64_t started)
{
    j->ranks = 3;
    j->mpiexec = mpiexec;
    j->started = started;
    assert_int_equal(hosts_parse(&j->hosts, "alpha,beta", err, sizeof(err)), 0);
    assert_int_equal(job_save(j), 0);
}

static void none(void **state)
{
    struct job j = opened(false);

    assert_int_equal(j.fd, -1);
    assert_false(job_is_known(&j));
    assert_false(job_mpiexec_runs(&j));
    job_close(&j, true);
}

static void read_back(void **state)
{
    struct job j = opened(true);

    assert_false(job_is_known(&j));
    save(&j, 1, 5);
    job_close(&j, false);
    j = opened(false);
    assert_true(job_is_known(&j));
    assert_int_equal(j.ranks, 3);
    assert_int_equal(j.hosts.n, 2);
    assert_string_equal(j.hosts.names[1], "beta");
    assert_false(job_mpiexec_runs(&j)); /* process 1 is there, and did not start then */
    job_close(&j, true);
    assert_int_equal(access(j.path, F_OK), -1);
}

/* Half a file, and what is not one, are no job. */
static void cut_off(void **state)
{
    static const char *const texts[] = {"", "ranks 3\n", "ranks 3\nmpiexec 5", "\377\376garbage\n",
                                        "ranks 3\nmpiexec 5 7\nhosts -x\n"};

    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++) {
        struct job j = opened(true);

        assert_int_equal(ftruncate(j.fd, 0), 0);
        assert_int_equal(pwrite(j.fd, texts[i], strlen(texts[i]), 0), strlen(texts[i]));
        job_close(&j, false);
        j = opened(false);
        assert_false(job_is_known(&j));
        job_close(&j, true);
    }
}

/* A second one waits, and finds what the first leaves: here, nothing, in a file of its own. */
static void one_at_a_time(void **state)
{
    struct job j = opened(true);
    int status;
    pid_t pid;

    save(&j, 1, 5);
    pid = fork();
    if (pid == 0) {
        struct job second;

        close(j.fd);
        alarm(20);
        if (job_open(&second, sock, true, err, sizeof(err)) || job_is_known(&second))
            _exit(1);
        job_close(&second, true);
        _exit(0);
    }
    usleep(200000);
    assert_int_equal(waitpid(pid, &status, WNOHANG), 0);
    job_close(&j, true);
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_int_equal(status, 0);
    assert_int_equal(access(j.path, F_OK), -1);
}

/* mpiexec is told by pid and start time; it ends on request, or by force. */
static void ending(void **state)
{
    struct job j = opened(true);
    char path[64], text[1024];
    pid_t pid = fork();
    FILE *f;

    if (pid == 0) {
        signal(SIGTERM, SIG_IGN);
        setsid();
        for (;;)
            pause();
    }
    snprintf(path, sizeof(path), "/proc/%d/stat", (int)pid);
    f = fopen(path, "r");
    assert_non_null(f);
    text[fread(text, 1, sizeof(text) - 1, f)] = '\0';
    fclose(f);
    char *p = strrchr(text, ')');
    for (int field = 2; field < 22; field++)
        p = strchr(p + 1, ' ');
    usleep(100000); /* for its signal and its session */
    save(&j, pid, strtoull(p, NULL, 10));
    assert_true(job_mpiexec_runs(&j));
    job_end_mpiexec(&j);
    assert_false(job_mpiexec_runs(&j));
    assert_int_equal(waitpid(pid, NULL, 0), pid);
    job_close(&j, true);
}

static void no_folder(void **state)
{
    struct job j;

    assert_int_equal(job_open(&j, "/nonexistent/dms.sock", true, err, sizeof(err)), -ENOENT);
    assert_non_null(strstr(err, "/nonexistent/dms.sock.job"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(none),          cmocka_unit_test(read_back), cmocka_unit_test(cut_off),
        cmocka_unit_test(one_at_a_time), cmocka_unit_test(ending),    cmocka_unit_test(no_folder),
    };
    int failed;

    if (!mkdtemp(folder))
        return 1;
    snprintf(sock, sizeof(sock), "%s/dms.sock", folder);
    failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(folder);
    return failed;
}
