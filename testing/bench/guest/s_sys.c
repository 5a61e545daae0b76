/* Operating-system bound benchmarks: calls, files, memory, processes, signals.
 * Each counts what it saw happen, not what it asked for; counts that a handler
 * or another process takes part in are atomics. */
#define _GNU_SOURCE
#include "bench.h"
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void *pages(size_t size)
{
    void *p = mmap(0, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    return p;
}
uint64_t s_getppid(uint64_t n)
{
    uint64_t r = 0; long parent = getppid();
    while (n--) r += syscall(SYS_getppid) == parent;
    return r;
}
uint64_t s_clock(uint64_t n)          /* vDSO: rdtsc(p) in user mode */
{
    struct timespec t = {0, 0}, u; uint64_t r = 0;
    while (n--) {
        clock_gettime(CLOCK_MONOTONIC, &u);
        r += u.tv_sec > t.tv_sec || (u.tv_sec == t.tv_sec && u.tv_nsec >= t.tv_nsec);
        t = u;
    }
    return r;
}
uint64_t s_stat(uint64_t n)
{
    struct stat st; uint64_t r = 0;
    while (n--) r += stat("/proc/self", &st) == 0 && S_ISDIR(st.st_mode);
    return r;
}
static int fd = -1;
static uint8_t block[4096];
void s_file_setup(void)
{
    if (fd < 0) {
        char nm[] = "/tmp/gbXXXXXX";
        mkdir("/tmp", 0777); fd = mkstemp(nm); unlink(nm);
        for (size_t i = 0; i < sizeof block; i++) block[i] = i * 7 + 3;
        if (fd < 0 || write(fd, block, sizeof block) < 0) die("file");
    }
}
uint64_t s_read1(uint64_t n)
{
    uint8_t c = 0; uint64_t r = 0;
    while (n--) { r += pread(fd, &c, 1, 100); r = r * 31 + c; }
    return r;
}
uint64_t s_write4k(uint64_t n)
{
    uint64_t r = 0; uint8_t back[4096];
    memset(block, 0, sizeof block);
    while (n--) { block[n & 4095] = n | 1; r += pwrite(fd, block, sizeof block, 0); }
    if (pread(fd, back, sizeof back, 0) != sizeof back) die("pread");
    for (size_t i = 0; i < sizeof back; i++) r = r * 31 + back[i];
    return r;
}
uint64_t s_pagefault(uint64_t n)      /* per page of a 64 MiB mapping */
{
    size_t sz = 64 << 20; uint64_t r = 0;
    while (n--) {
        volatile uint8_t *p = pages(sz);
        madvise((void *)p, sz, MADV_NOHUGEPAGE);
        for (size_t i = 0; i < sz; i += 4096) { p[i] = i >> 12 | 1; r += p[i]; }
        munmap((void *)p, sz);
    }
    return r;
}
uint64_t s_mmap(uint64_t n)           /* map, touch, unmap one page */
{
    uint64_t r = 0;
    while (n--) {
        volatile uint8_t *p = pages(4096);
        p[0] = n | 1; r += p[0];
        r += munmap((void *)p, 4096) == 0;
    }
    return r;
}
static volatile uint8_t *prot;
void s_mprotect_setup(void) { if (!prot) prot = pages(8192); }
uint64_t s_mprotect(uint64_t n)       /* one protect+unprotect+touch pair */
{
    uint64_t r = 0; prot[0] = 0;
    while (n--) {
        r += mprotect((void *)prot, 4096, PROT_READ) == 0;
        r += mprotect((void *)prot, 4096, PROT_READ | PROT_WRITE) == 0;
        prot[0]++; r += prot[0];
    }
    return r;
}
uint64_t s_fork(uint64_t n)
{
    uint64_t r = 0;
    while (n--) {
        pid_t p = fork(); int st;
        if (p < 0) die("fork");
        if (!p) _exit(n & 127);
        if (waitpid(p, &st, 0) != p || !WIFEXITED(st)) die("wait");
        r = r * 3 + WEXITSTATUS(st) + 1;
    }
    return r;
}
uint64_t s_forkexec(uint64_t n)
{
    uint64_t r = 0;
    while (n--) {
        pid_t p = fork(); int st;
        if (p < 0) die("fork");
        if (!p) { char *a[] = {"gbench", "--nop", 0}, *e[] = {0}; execve("/proc/self/exe", a, e); _exit(9); }
        if (waitpid(p, &st, 0) != p || st) die("exec");
        r++;
    }
    return r;
}
static int pa[2], pb[2];
static void pin(int c)
{
    cpu_set_t s; CPU_ZERO(&s); CPU_SET(c, &s); sched_setaffinity(0, sizeof s, &s);
}
/* Round trip between two processes on one CPU: the child answers each byte
 * with the next one. */
uint64_t s_pipe(uint64_t n)
{
    uint8_t c = 1; int st; uint64_t r = 0; cpu_set_t old;
    if (pipe(pa) || pipe(pb)) die("pipe");
    sched_getaffinity(0, sizeof old, &old);
    pin(0);
    pid_t p = fork();
    if (p < 0) die("fork");
    if (!p) {
        for (uint64_t i = 0; i < n; i++) {
            if (read(pa[0], &c, 1) != 1) break;
            c++;
            if (write(pb[1], &c, 1) != 1) break;
        }
        _exit(0);
    }
    for (uint64_t i = 0; i < n; i++) {
        c = i;
        if (write(pa[1], &c, 1) != 1 || read(pb[0], &c, 1) != 1) die("rw");
        r = r * 3 + c;
    }
    waitpid(p, &st, 0);
    close(pa[0]); close(pa[1]); close(pb[0]); close(pb[1]);
    sched_setaffinity(0, sizeof old, &old);
    return r;
}
static uint64_t sigs;
static void onsig(int s) { (void)s; __atomic_fetch_add(&sigs, 1, __ATOMIC_SEQ_CST); }
void s_signal_setup(void) { signal(SIGUSR1, onsig); }
uint64_t s_signal(uint64_t n)
{
    pid_t me = getpid();
    __atomic_store_n(&sigs, 0, __ATOMIC_SEQ_CST);
    while (n--) kill(me, SIGUSR1);
    return __atomic_load_n(&sigs, __ATOMIC_SEQ_CST);
}
static volatile uint8_t *seg;
static uint64_t segs;
static void onsegv(int s)
{
    (void)s; __atomic_fetch_add(&segs, 1, __ATOMIC_SEQ_CST);
    mprotect((void *)seg, 4096, PROT_READ | PROT_WRITE);
}
void s_segv_setup(void)
{
    if (!seg) seg = pages(4096);
    signal(SIGSEGV, onsegv);
}
uint64_t s_segv(uint64_t n)
{
    uint64_t r = 0;
    __atomic_store_n(&segs, 0, __ATOMIC_SEQ_CST);
    while (n--) { mprotect((void *)seg, 4096, PROT_NONE); seg[0] = n | 1; r += seg[0]; }
    return r * 7 + __atomic_load_n(&segs, __ATOMIC_SEQ_CST);
}
