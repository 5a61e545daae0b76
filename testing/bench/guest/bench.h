/* gbench: small self-timing benchmarks for guests of an x86-64 VMM.
 * Every benchmark is a function run(n) that does n units of work and returns
 * a checksum that depends only on n, so that a mistranslation shows. State
 * that outlives a run is reset at its begin, or does not enter the checksum. */
#ifndef BENCH_H
#define BENCH_H
#include <stddef.h>
#include <stdint.h>

enum unit { NS_OP, MB_S };            /* how the driver prints the result */

struct bench {
    const char *name;
    const char *group;                /* "cpu" or "sys" */
    enum unit unit;
    uint64_t per_n;                   /* operations (NS_OP) or bytes (MB_S) per n */
    void (*setup)(void);              /* may be NULL; not timed */
    uint64_t (*run)(uint64_t n);
    uint64_t check_n;                 /* n used for the checksum */
};

/* xorshift64*: the one source of pseudo-random test data */
static inline uint64_t rnd(uint64_t *s)
{
    *s ^= *s >> 12; *s ^= *s << 25; *s ^= *s >> 27;
    return *s * 2685821657736338717ull;
}
uint64_t now_ns(void);
void die(const char *what);
/* text-like compressible data, deterministic */
void fill_text(uint8_t *p, size_t n, uint64_t seed);
#endif
