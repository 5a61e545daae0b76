/* What a second processor gives: the work done within a time by one worker on each of two
 * processors by turns, by two threads, and by two processes. Work is counted, not time: a worker
 * that the host holds up costs what it did not do, and nobody waits for it. What is compared
 * follows each other at once, so that what disturbs the machine for longer disturbs all alike,
 * and both processors count alone, since a machine's cores are disturbed one by one. */
#define _GNU_SOURCE
#include "bench.h"
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { UNIT = 100, START_NS = 2000000 };
struct worker { uint64_t from, until, done, sum; double share; } __attribute__((aligned(128)));
static struct worker *two;             /* shared with children */

uint64_t k_interp(uint64_t n);
static uint64_t cpu_ns(void)
{
    struct timespec t; clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return t.tv_sec * 1000000000ull + t.tv_nsec;
}
static void *work(void *arg)
{
    struct worker *w = arg; uint64_t done = 0, sum = 0, cpu = cpu_ns();
    struct timespec at = {w->from / 1000000000ull, w->from % 1000000000ull};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, 0);
    while (now_ns() < w->until) { sum += k_interp(UNIT); done++; }
    w->done = done; w->sum = sum;
    w->share = (double)(cpu_ns() - cpu) / (w->until - w->from);
    return 0;
}
static void begin(uint64_t ns)
{
    for (int i = 0; i < 2; i++) {
        two[i].from = now_ns() + START_NS; two[i].until = two[i].from + ns; two[i].done = 0;
    }
}
/* Units of work in a second, in thousands; `share`, of how many processors, is added up. */
static double rate(int workers, uint64_t ns, double *share)
{
    uint64_t done = 0, expected = k_interp(UNIT);
    for (int i = 0; i < workers; i++) {
        if (two[i].sum != two[i].done * expected) die("pair");
        done += two[i].done; *share += two[i].share;
    }
    return done * 1e6 / ns;
}
/* On the nth processor that this program may use. */
static double alone(int nth, uint64_t ns)
{
    cpu_set_t all, one; double share = 0; int cpu = 0;
    if (sched_getaffinity(0, sizeof all, &all)) die("affinity");
    while (!CPU_ISSET(cpu, &all) || nth--) if (++cpu == CPU_SETSIZE) die("processors");
    CPU_ZERO(&one); CPU_SET(cpu, &one);
    if (sched_setaffinity(0, sizeof one, &one)) die("affinity");
    begin(ns); work(&two[0]);
    if (sched_setaffinity(0, sizeof all, &all)) die("affinity");
    return rate(1, ns, &share);
}
static double threads(uint64_t ns, double *share)
{
    pthread_t t;
    begin(ns);
    if (pthread_create(&t, 0, work, &two[1])) die("thread");
    work(&two[0]); pthread_join(t, 0);
    return rate(2, ns, share);
}
static double processes(uint64_t ns, double *share)
{
    int st;
    begin(ns);
    pid_t p = fork();
    if (p < 0) die("fork");
    if (!p) { work(&two[1]); _exit(0); }
    work(&two[0]);
    if (waitpid(p, &st, 0) != p || st) die("wait");
    return rate(2, ns, share);
}
/* Prints, `times`: rates of one worker on either processor, of two threads, of two processes;
 * then how many processors the two had in both cases. */
void pair(int ms, int times)
{
    uint64_t ns = ms * 1000000ull;
    two = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (two == MAP_FAILED) die("mmap");
    alone(0, ns); alone(1, ns);        /* hot from here on */
    for (int i = 0; i < times; i++) {
        double of_threads = 0, of_processes = 0;
        double first = alone(0, ns), t = threads(ns, &of_threads);
        double second = alone(1, ns), p = processes(ns, &of_processes);
        printf("PAIR alone %.2f %.2f threads %.2f processes %.2f cpus %.2f %.2f\n",
               first, second, t, p, of_threads, of_processes);
        fflush(stdout);
    }
}
