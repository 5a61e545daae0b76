/* Driver: gbench [-c] [-t ms] [-r reps] [-l] [latency] [pair] [disk LABEL FILE]
 *        [net ADDRESS PORT] [name|group ...]
 * -c times by CPU time instead of CLOCK_MONOTONIC (for a busy machine);
 * -t is the shortest timed loop, -r how often it runs (the best counts).
 * As /init (pid 1) it mounts what it needs, reads "gbench.args=a,b,c" from the
 * kernel command line, runs, and powers off. The first line it prints and the
 * last carry CLOCK_BOOTTIME, so that a host can hold them against its own. */
#define _GNU_SOURCE
#include "bench.h"
#include "table.h"
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifdef ONLY_CPU
#define TABLE CPU_TABLE
#else
#define TABLE CPU_TABLE LIB_TABLE SYS_TABLE
#endif
#define X(n, g, u, p, s, r, c) uint64_t r(uint64_t);
TABLE
#undef X
void k_chase_setup(void), k_lz_setup(void), l_zlib_setup(void), l_inflate_setup(void),
     s_file_setup(void), s_mprotect_setup(void), s_signal_setup(void), s_segv_setup(void), s_smc_setup(void),
     s_jit_setup(void), k_mem_setup(void), pair(int, int), io_disk(const char *, const char *, int),
     io_net(const char *, int, int);
#define X(n, g, u, p, s, r, c) {#n, #g, u, p, s, r, c},
static const struct bench all[] = { TABLE };
#define COUNT (sizeof all / sizeof *all)

static clockid_t clk = CLOCK_MONOTONIC;
uint64_t now_ns(void)
{
    struct timespec t; clock_gettime(clk, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}
void die(const char *w) { printf("FAIL %s\n", w); fflush(stdout); _exit(1); }
void fill_text(uint8_t *p, size_t n, uint64_t seed)
{
    static const char *w[] = {"the ", "quick ", "brown ", "fox ", "jumps ", "over ", "lazy ", "dog ", "and ", "then ",
        "runs ", "away ", "from ", "every ", "hunter ", "in ", "sight\n", "while ", "counting ", "to "};
    size_t i = 0;
    while (i < n) {
        uint64_t v = rnd(&seed); const char *s = w[v % 20];
        while (*s && i < n) p[i++] = *s++;
        if (v >> 60 == 0 && i < n) p[i++] = '0' + (v >> 50) % 10;
    }
}
static int ms = 200, reps = 3;
/* Measure one benchmark, in a child of its own: fresh memory for each. */
static void one(const struct bench *b)
{
    uint64_t n = 1, t, sum;
    pid_t pid = fork();
    if (pid < 0) die("fork");
    if (pid) { int st; waitpid(pid, &st, 0); if (st) printf("FAIL %s status %x\n", b->name, st); return; }
    if (b->setup) b->setup();
    sum = b->run(b->check_n);
    for (;;) {                                   /* find n that runs >= ms */
        t = now_ns(); b->run(n); t = now_ns() - t;
        if (t >= ms * 1000000ull) break;
        n = t < ms * 50000ull ? n * 8 : n * (ms * 1200000ull) / (t + 1) + 1;
    }
    double bt = (double)t / n;
    for (int r = 1; r < reps; r++) {
        t = now_ns(); b->run(n); t = now_ns() - t;
        if ((double)t / n < bt) bt = (double)t / n;
    }
    if (b->run(b->check_n) != sum) die(b->name);   /* hot code answers as cold code did */
    if (b->unit == NS_OP) printf("%-10s %12.2f ns/op", b->name, bt / b->per_n);
    else printf("%-10s %12.1f MB/s ", b->name, b->per_n * 1000.0 / bt);
    printf("  %016llx\n", (unsigned long long)sum);
    fflush(stdout);
    _exit(0);
}
static int by_value(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;
    return (x > y) - (x < y);
}
/* How long after its time a sleeper runs: the timer's interrupt and the way to user mode. */
static void latency(void)
{
    enum { COUNT_OF_SLEEPS = 400, SLEEP_NS = 500000 };
    static uint64_t late[COUNT_OF_SLEEPS];
    prctl(PR_SET_TIMERSLACK, 1);
    for (int i = 0; i < COUNT_OF_SLEEPS; i++) {
        struct timespec until; clock_gettime(CLOCK_MONOTONIC, &until);
        uint64_t at = until.tv_sec * 1000000000ull + until.tv_nsec + SLEEP_NS;
        until.tv_sec = at / 1000000000ull; until.tv_nsec = at % 1000000000ull;
        clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, 0);
        late[i] = now_ns() - at;
    }
    qsort(late, COUNT_OF_SLEEPS, sizeof *late, by_value);
    printf("LATENCY timer median %llu p99 %llu ns\n", (unsigned long long)late[COUNT_OF_SLEEPS / 2],
           (unsigned long long)late[COUNT_OF_SLEEPS * 99 / 100]);
    fflush(stdout);
}
static int run(int argc, char **argv)
{
    int any = 0;
    for (int i = 1; i < argc; i++) {
        if (!strcmp(argv[i], "-t")) ms = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-r")) reps = atoi(argv[++i]);
        else if (!strcmp(argv[i], "-c")) clk = CLOCK_PROCESS_CPUTIME_ID;
        else if (!strcmp(argv[i], "-l")) { for (size_t k = 0; k < COUNT; k++) puts(all[k].name); return 0; }
        else if (!strcmp(argv[i], "none")) any = 1;
        else if (!strcmp(argv[i], "latency")) { latency(); any = 1; }
        else if (!strcmp(argv[i], "pair")) { pair(ms, reps); any = 1; }
        else if (!strcmp(argv[i], "disk") && i + 2 < argc) { io_disk(argv[i + 1], argv[i + 2], ms); i += 2; any = 1; }
        else if (!strcmp(argv[i], "net") && i + 2 < argc) { io_net(argv[i + 1], atoi(argv[i + 2]), ms); i += 2; any = 1; }
        else {
            int hit = 0;
            for (size_t k = 0; k < COUNT; k++)
                if (!strcmp(argv[i], all[k].name) || !strcmp(argv[i], all[k].group)) { one(&all[k]); hit = 1; }
            if (!hit) printf("no benchmark '%s'\n", argv[i]);
            any = 1;
        }
    }
    if (!any) for (size_t k = 0; k < COUNT; k++) one(&all[k]);
    return 0;
}
/* One line with the time since boot, which the host times too. */
static void stamp(const char *what)
{
    struct timespec up; clock_gettime(CLOCK_BOOTTIME, &up);
    printf("%s boottime=%ld.%03ld\n", what, (long)up.tv_sec, up.tv_nsec / 1000000); fflush(stdout);
}
static void cat(const char *f)
{
    char b[4096]; int d = open(f, O_RDONLY); ssize_t k;
    if (d >= 0 && (k = read(d, b, sizeof b)) > 0) fwrite(b, 1, k, stdout);
    fflush(stdout);
}
int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--nop")) return 0;
    if (getpid() != 1) return run(argc, argv);
    mkdir("/dev", 0755); mkdir("/proc", 0755); mkdir("/sys", 0755); mkdir("/tmp", 01777);
    if (access("/dev/console", F_OK)) mount("devtmpfs", "/dev", "devtmpfs", 0, 0);
    int d = open("/dev/console", O_RDWR);
    if (d >= 0) { dup2(d, 0); dup2(d, 1); dup2(d, 2); }
    stamp("GBENCH-INIT");
    mount("proc", "/proc", "proc", 0, 0);
    mount("tmpfs", "/tmp", "tmpfs", 0, 0);
    mount("sysfs", "/sys", "sysfs", 0, 0);
    printf("clocksource "); fflush(stdout);
    cat("/sys/devices/system/clocksource/clocksource0/current_clocksource");
    char b[4096] = {0}, *p; d = open("/proc/cmdline", O_RDONLY);
    if (d >= 0 && read(d, b, sizeof b - 1) > 0 && (p = strstr(b, "gbench.args="))) {
        char *av[64] = {"gbench"}; int ac = 1;
        p += 12; p[strcspn(p, " \n")] = 0;
        for (char *t = strtok(p, ","); t && ac < 63; t = strtok(0, ",")) av[ac++] = t;
        run(ac, av);
    } else run(1, argv);
    stamp("GBENCH-DONE"); sync(); usleep(100000);
    reboot(RB_POWER_OFF); reboot(RB_AUTOBOOT);
    for (;;) pause();
}
