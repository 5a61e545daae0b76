/* Code made at run time: one patched instruction, and a small compiler. */
#define _GNU_SOURCE
#include "bench.h"
#include <string.h>
#include <sys/mman.h>

static uint8_t *executable(size_t size)
{
    void *p = mmap(0, size, PROT_READ | PROT_WRITE | PROT_EXEC, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED) die("mmap");
    return p;
}

/* smc: patch an immediate and call it */
static uint8_t *code;
void s_smc_setup(void)
{
    if (!code) code = executable(4096);
    static const uint8_t f[] = {0xb8, 0, 0, 0, 0, 0xc3}; memcpy(code, f, sizeof f);
}
uint64_t s_smc(uint64_t n)
{
    uint64_t r = 0;
    for (uint64_t i = 0; i < n; i++) { uint32_t v = i; memcpy(code + 1, &v, 4); r += ((uint32_t(*)(void))code)(); }
    return r;
}

/* jit: what a just-in-time compiler does to a processor. Every unit of work
 * takes one fresh page of code, emits 32 functions into it, each a loop over
 * a few random operations that ends in a call of the function before. The calls first lead to
 * a stub that returns its argument; after a first round they are patched to
 * their targets, and called again. A ring of 512 pages is handed back to the kernel
 * when it is full, so that no page is fresh because of an earlier run. */
enum { PAGE = 4096, RING = 512, FUNCS = 32, OPS = 6, LOOPS = 8 };
static uint8_t *ring;

static uint8_t *put(uint8_t *p, const void *bytes, size_t n) { memcpy(p, bytes, n); return p + n; }
#define PUT(p, ...) do { const uint8_t b_[] = {__VA_ARGS__}; (p) = put((p), b_, sizeof b_); } while (0)
static uint8_t *put32(uint8_t *p, uint32_t v) { return put(p, &v, 4); }

void s_jit_setup(void) { if (!ring) ring = executable((size_t)RING * PAGE); }

static void link_call(uint8_t *site, const uint8_t *target)
{
    int32_t d = target - (site + 5); memcpy(site + 1, &d, 4);
}
/* uint64_t f(uint64_t x): rax works, rdi is the argument, ecx counts */
static uint8_t *emit(uint8_t *p, const uint8_t *stub, uint8_t **site, uint64_t *s)
{
    PUT(p, 0x48, 0x89, 0xf8);                               /* mov rax, rdi */
    PUT(p, 0xb9); p = put32(p, LOOPS);                      /* mov ecx, LOOPS */
    uint8_t *top = p;
    for (int i = 0; i < OPS; i++) {
        uint64_t v = rnd(s);
        switch (v >> 61 & 3) {
        case 0: PUT(p, 0x48, 0x05); p = put32(p, v); break;             /* add rax, imm32 */
        case 1: PUT(p, 0x48, 0x35); p = put32(p, v); break;             /* xor rax, imm32 */
        case 2: PUT(p, 0x48, 0xc1, 0xc0, v >> 8 & 63); break;           /* rol rax, imm8 */
        case 3: PUT(p, 0x48, 0x69, 0xc0); p = put32(p, v | 1); break;   /* imul rax, rax, imm32 */
        }
    }
    PUT(p, 0xff, 0xc9, 0x75); *p = top - (p + 1); p++;      /* dec ecx; jnz top */
    PUT(p, 0x48, 0x89, 0xc7, 0x48, 0x83, 0xec, 0x08);       /* mov rdi, rax; sub rsp, 8 */
    *site = p; PUT(p, 0xe8); p = put32(p, 0); link_call(*site, stub);   /* call stub */
    PUT(p, 0x48, 0x83, 0xc4, 0x08, 0xc3);                   /* add rsp, 8; ret */
    return p;
}
uint64_t s_jit(uint64_t n)
{
    uint64_t r = 0, s = 4711;
    for (uint64_t i = 0; i < n; i++) {
        uint8_t *p = ring + i % RING * PAGE, *stub = p, *f[FUNCS], *site[FUNCS];
        if (i % RING == 0 && madvise(ring, (size_t)RING * PAGE, MADV_DONTNEED)) die("madvise");
        PUT(p, 0x48, 0x8d, 0x47, 0x01, 0xc3);               /* stub: lea rax, [rdi+1]; ret */
        for (int k = 0; k < FUNCS; k++) { f[k] = p; p = emit(p, stub, &site[k], &s); }
        for (int k = 0; k < FUNCS; k++) r = r * 3 + ((uint64_t (*)(uint64_t))f[k])(r);
        for (int k = 1; k < FUNCS; k++) link_call(site[k], f[k - 1]);
        r += ((uint64_t (*)(uint64_t))f[FUNCS - 1])(r);
    }
    return r;
}
