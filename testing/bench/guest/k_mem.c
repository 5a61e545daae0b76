/* Block copies and fills, and a loop over bytes. Before each run the bytes of
 * the target that the checksum samples are cleared, so that a copy that does
 * not happen shows. */
#include "bench.h"
#include <string.h>
#define N (1 << 20)
#define STEP 1021                     /* prime: samples every line offset */
static uint8_t a[N] __attribute__((aligned(4096))), b[N] __attribute__((aligned(4096)));
#define OPAQUE(p) __asm__ volatile("" : "+r"(p) :: "memory")

void k_mem_setup(void) { uint64_t s = 17; for (int i = 0; i < N; i++) b[i] = rnd(&s) >> 56; }
static void clear(void) { for (int i = 0; i < N; i += STEP) a[i] = 0; a[N - 1] = 0; }
static uint64_t digest(void)
{
    uint64_t r = a[N - 1];
    for (int i = 0; i < N; i += STEP) r = r * 31 + a[i];
    return r;
}
uint64_t k_memcpy(uint64_t n)
{
    uint8_t *p = a, *q = b;
    clear();
    while (n--) { OPAQUE(p); OPAQUE(q); memcpy(p, q, N); }
    OPAQUE(p);
    return digest();
}
uint64_t k_memset(uint64_t n)
{
    uint8_t *p = a;
    clear();
    while (n--) { OPAQUE(p); memset(p, (n & 127) + 1, N); }
    OPAQUE(p);
    return digest();
}
uint64_t k_repmovs(uint64_t n)
{
    clear();
    while (n--) {
        void *d = a; const void *s = b; size_t c = N;
        __asm__ volatile("rep movsb" : "+D"(d), "+S"(s), "+c"(c) :: "memory");
    }
    return digest();
}
uint64_t k_bytesum(uint64_t n)
{
    uint64_t r = 0;
    while (n--) for (int i = 0; i < N; i++) { r = (r << 1 | r >> 63) ^ b[i]; }
    return r;
}
