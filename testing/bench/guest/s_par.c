/* Two threads: atomics, parallel work, futex hand-over. */
#define _GNU_SOURCE
#include "bench.h"
#include <linux/futex.h>
#include <pthread.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static uint64_t shared_ctr, parn;

static pthread_t start(void *(*f)(void *), void *arg)
{
    pthread_t t;
    if (pthread_create(&t, 0, f, arg)) die("thread");
    return t;
}
static void *lockinc(void *a)
{
    (void)a;
    for (uint64_t i = 0; i < parn; i++) __atomic_fetch_add(&shared_ctr, 1, __ATOMIC_SEQ_CST);
    return 0;
}
uint64_t s_atomic1(uint64_t n)
{
    parn = n * 1000; __atomic_store_n(&shared_ctr, 0, __ATOMIC_SEQ_CST);
    lockinc(0);
    return __atomic_load_n(&shared_ctr, __ATOMIC_SEQ_CST);
}
uint64_t s_atomic2(uint64_t n)        /* two threads incrementing one locked counter */
{
    parn = n * 1000; __atomic_store_n(&shared_ctr, 0, __ATOMIC_SEQ_CST);
    pthread_t t = start(lockinc, 0);
    lockinc(0); pthread_join(t, 0);
    return __atomic_load_n(&shared_ctr, __ATOMIC_SEQ_CST);
}
uint64_t k_interp(uint64_t n);
static void *work(void *sum)
{
    uint64_t r = 0;
    for (uint64_t i = 0; i < parn; i++) r = r * 3 + k_interp(1000);
    __atomic_fetch_add((uint64_t *)sum, r, __ATOMIC_SEQ_CST);
    return 0;
}
uint64_t s_par2(uint64_t n)           /* two threads, each n units of interpreter work */
{
    uint64_t sum = 0;
    parn = n;
    pthread_t t = start(work, &sum);
    work(&sum); pthread_join(t, 0);
    return sum;
}
uint64_t s_par1(uint64_t n)           /* the same with one thread: what two can be held against */
{
    uint64_t sum = 0;
    parn = n;
    work(&sum);
    return sum;
}
uint64_t s_proc2(uint64_t n)          /* two processes, each n units of interpreter work */
{
    uint64_t sum = 0; int ends[2], st;
    parn = n;
    if (pipe(ends)) die("pipe");
    pid_t p = fork();
    if (p < 0) die("fork");
    if (!p) { work(&sum); _exit(write(ends[1], &sum, sizeof sum) != sizeof sum); }
    uint64_t other = 0;
    work(&sum);
    if (read(ends[0], &other, sizeof other) != sizeof other) die("proc2");
    if (waitpid(p, &st, 0) != p || st) die("wait");
    close(ends[0]); close(ends[1]);
    return sum * 31 + other;
}
static int fut;
static uint64_t pongs;
static long fx(int op, int v) { return syscall(SYS_futex, &fut, op | FUTEX_PRIVATE_FLAG, v, 0, 0, 0); }
static void *pong(void *a)
{
    (void)a;
    for (uint64_t i = 0; i < parn; i++) {
        while (__atomic_load_n(&fut, __ATOMIC_ACQUIRE) != 1) fx(FUTEX_WAIT, 0);
        __atomic_fetch_add(&pongs, 1, __ATOMIC_SEQ_CST);
        __atomic_store_n(&fut, 0, __ATOMIC_RELEASE); fx(FUTEX_WAKE, 1);
    }
    return 0;
}
uint64_t s_futex(uint64_t n)          /* round trip between two threads, unpinned */
{
    parn = n; fut = 0; __atomic_store_n(&pongs, 0, __ATOMIC_SEQ_CST);
    pthread_t t = start(pong, 0);
    for (uint64_t i = 0; i < n; i++) {
        __atomic_store_n(&fut, 1, __ATOMIC_RELEASE); fx(FUTEX_WAKE, 1);
        while (__atomic_load_n(&fut, __ATOMIC_ACQUIRE) != 0) fx(FUTEX_WAIT, 1);
    }
    pthread_join(t, 0);
    return __atomic_load_n(&pongs, __ATOMIC_SEQ_CST);
}
