/* Devices: 4 KiB at random places of a disk, with many requests under way, and a TCP stream in and
 * out. A disk is prepared: each of its blocks says which one it is. What is read is looked at, and
 * after the writes all blocks are read again. The stream repeats what both ends know. */
#define _GNU_SOURCE
#include "bench.h"
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <linux/fs.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { BLOCK = 4096, WORDS = BLOCK / 8, DEPTH = 32, STREAM = 1 << 20, CHUNK = 1 << 16 };

/* The word of a block; `age` is 0 as it was prepared, 1 once it was written. */
static uint64_t word(uint64_t block, uint64_t at, uint64_t age)
{
    return (block * WORDS + at + 1) * 0x9e3779b97f4a7c15ull + age;
}
static void fill(uint64_t *to, uint64_t block, uint64_t age)
{
    for (uint64_t i = 0; i < WORDS; i++) to[i] = word(block, i, age);
}
static void check(const uint64_t *from, uint64_t block, uint64_t age, uint64_t step)
{
    for (uint64_t i = 0; i < WORDS; i += step)
        if (from[i] != word(block, i, age)) die("disk: a block is not what it was");
}
static uint64_t blocks_of(int fd)
{
    struct stat st; uint64_t bytes = 0;
    if (fstat(fd, &st)) die("disk: size");
    if (!S_ISBLK(st.st_mode)) bytes = st.st_size;
    else if (ioctl(fd, BLKGETSIZE64, &bytes)) die("disk: size");
    if (bytes < BLOCK) die("disk: size");
    return bytes / BLOCK;
}
/* Requests in a second for so long; what is written is noted. */
static double at_random(int fd, uint64_t blocks, int writes, uint8_t *written, uint64_t ns)
{
    static uint8_t *data; static uint8_t *busy;
    aio_context_t ctx = 0; struct iocb cb[DEPTH], *go[DEPTH]; struct io_event events[DEPTH];
    uint64_t at[DEPTH], seed = 77 + writes, done = 0, start, now;
    int flying = 0, ready = DEPTH, freed[DEPTH];
    if (!data && posix_memalign((void **)&data, BLOCK, DEPTH * BLOCK)) die("disk: memory");
    busy = calloc(blocks, 1);
    if (!busy || syscall(SYS_io_setup, DEPTH, &ctx)) die("disk: io_setup");
    for (int i = 0; i < DEPTH; i++) freed[i] = i;
    for (start = now = now_ns(); now - start < ns || flying; now = now_ns()) {
        int n = 0;
        if (now - start < ns)
            for (; n < ready; n++) {
                int i = freed[n]; uint64_t *buffer = (uint64_t *)(data + i * BLOCK);
                do at[i] = (rnd(&seed) >> 20) % blocks; while (busy[at[i]]);
                busy[at[i]] = 1;
                if (writes) { fill(buffer, at[i], 1); written[at[i]] = 1; }
                memset(&cb[i], 0, sizeof cb[i]);
                cb[i].aio_data = i; cb[i].aio_fildes = fd; cb[i].aio_nbytes = BLOCK;
                cb[i].aio_lio_opcode = writes ? IOCB_CMD_PWRITE : IOCB_CMD_PREAD;
                cb[i].aio_buf = (uintptr_t)buffer; cb[i].aio_offset = at[i] * BLOCK;
                go[n] = &cb[i];
            }
        for (int sent = 0; sent < n;) {
            int k = syscall(SYS_io_submit, ctx, n - sent, go + sent);
            if (k <= 0) die("disk: io_submit");
            sent += k;
        }
        flying += n;
        ready = syscall(SYS_io_getevents, ctx, 1, DEPTH, events, 0);
        if (ready <= 0) die("disk: io_getevents");
        for (int k = 0; k < ready; k++) {
            int i = events[k].data;
            if (events[k].res != BLOCK) die("disk: a request failed");
            if (!writes) check((uint64_t *)(data + i * BLOCK), at[i], 0, WORDS / 2);
            busy[at[i]] = 0; freed[k] = i;
        }
        flying -= ready; done += ready;
    }
    syscall(SYS_io_destroy, ctx); free(busy);
    return done * 1e9 / (now - start);
}
/* Every block says its number, and whether it was written. */
static void all(int fd, uint64_t blocks, const uint8_t *written)
{
    uint8_t *data = 0;
    if (posix_memalign((void **)&data, BLOCK, CHUNK)) die("disk: memory");
    for (uint64_t from = 0; from < blocks;) {
        uint64_t n = blocks - from < CHUNK / BLOCK ? blocks - from : CHUNK / BLOCK;
        if (pread(fd, data, n * BLOCK, from * BLOCK) != (ssize_t)(n * BLOCK)) die("disk: read");
        for (uint64_t i = 0; i < n; i++, from++)
            check((uint64_t *)(data + i * BLOCK), from, written[from], 1);
    }
    free(data);
}
void io_disk(const char *label, const char *path, int ms)
{
    int fd = open(path, O_RDWR | O_DIRECT);
    if (fd < 0) die("disk: open");
    uint64_t blocks = blocks_of(fd);
    uint8_t *written = calloc(blocks, 1);
    if (!written) die("disk: memory");
    printf("IO %s-read %.1f\n", label, at_random(fd, blocks, 0, written, ms * 1000000ull));
    printf("IO %s-write %.1f\n", label, at_random(fd, blocks, 1, written, ms * 1000000ull));
    if (fsync(fd)) die("disk: fsync");
    all(fd, blocks, written);
    printf("IO-CHECKED %s %llu\n", label, (unsigned long long)blocks);
    fflush(stdout); free(written); close(fd);
}
/* What is at a place of the stream: from there on, up to its repetition. */
static const uint8_t *stream(uint64_t at, size_t *left)
{
    static uint64_t bytes[STREAM / 8]; uint64_t seed = 4711;
    if (!bytes[0]) for (size_t i = 0; i < STREAM / 8; i++) bytes[i] = rnd(&seed);
    *left = STREAM - at % STREAM;
    return (const uint8_t *)bytes + at % STREAM;
}
static int peer(const char *address, int port, char what)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (fd < 0 || !inet_aton(address, &to.sin_addr)) die("net: address");
    if (connect(fd, (struct sockaddr *)&to, sizeof to)) die("net: connect");
    if (write(fd, &what, 1) != 1) die("net: write");
    return fd;
}
static void rate(const char *name, uint64_t bytes, uint64_t ns)
{
    printf("IO %s %.2f\n", name, bytes * 1e3 / ns); fflush(stdout);
}
void io_net(const char *address, int port, int ms)
{
    static uint8_t buffer[CHUNK]; uint64_t at = 0, sent, start, ns = ms * 1000000ull; size_t left;
    stream(0, &left);
    int fd = peer(address, port, 'R');
    for (start = now_ns(); now_ns() - start < ns;) {
        ssize_t n = read(fd, buffer, sizeof buffer);
        if (n <= 0) die("net: read");
        for (ssize_t seen = 0; seen < n;) {
            const uint8_t *want = stream(at, &left);
            size_t k = (size_t)(n - seen) < left ? (size_t)(n - seen) : left;
            if (memcmp(buffer + seen, want, k)) die("net: the stream is another");
            seen += k; at += k;
        }
    }
    rate("net-in", at, now_ns() - start); close(fd);
    fd = peer(address, port, 'W'); at = 0;
    for (start = now_ns(); now_ns() - start < ns;) {
        const uint8_t *next = stream(at, &left);
        ssize_t n = write(fd, next, left < CHUNK ? left : CHUNK);
        if (n <= 0) die("net: write");
        at += n;
    }
    /* The other end says how much has come that was as it should be. */
    if (shutdown(fd, SHUT_WR) || recv(fd, &sent, sizeof sent, MSG_WAITALL) != sizeof sent) die("net: end");
    if (sent != at) die("net: the stream was another");
    rate("net-out", at, now_ns() - start); close(fd);
}
