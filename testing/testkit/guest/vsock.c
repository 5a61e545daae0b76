/* Streams by AF_VSOCK, for a guest without other tools.
 *
 *   vsock listen PORT < given > taken     waits for one connection
 *   vsock connect PORT < given > taken    connects to the host
 *
 * Sends its standard input, then no more, while it writes what comes to its standard output. */
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static void fail(const char *what) {
    perror(what);
    exit(1);
}

static int join(int listening, unsigned port) {
    struct sockaddr_vm at = {.svm_family = AF_VSOCK, .svm_port = port};
    int s = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (s < 0) fail("socket");
    at.svm_cid = listening ? VMADDR_CID_ANY : VMADDR_CID_HOST;
    if (!listening) {
        if (connect(s, (struct sockaddr *)&at, sizeof at)) fail("connect");
        return s;
    }
    if (bind(s, (struct sockaddr *)&at, sizeof at) || listen(s, 8)) fail("listen");
    fprintf(stderr, "listening\n");
    int c = accept(s, 0, 0);
    if (c < 0) fail("accept");
    return c;
}

int main(int argc, char **argv) {
    static char out[65536], in[65536];
    if (argc != 3) return 2;
    int s = join(!strcmp(argv[1], "listen"), strtoul(argv[2], 0, 10));
    size_t have = 0, done = 0;
    int more = 1, open = 1;
    while (more || open) {
        if (more && done == have) {
            ssize_t n = read(0, out, sizeof out);
            if (n < 0) fail("read");
            have = n;
            done = 0;
            if (n == 0) {
                if (shutdown(s, SHUT_WR)) fail("shutdown");
                more = 0;
                continue;
            }
        }
        struct pollfd p = {.fd = s, .events = (open ? POLLIN : 0) | (more ? POLLOUT : 0)};
        if (poll(&p, 1, -1) < 0) fail("poll");
        if (more && p.revents & (POLLOUT | POLLERR)) {
            ssize_t n = send(s, out + done, have - done, MSG_DONTWAIT | MSG_NOSIGNAL);
            if (n < 0) fail("send");
            done += n;
        }
        if (open && p.revents & (POLLIN | POLLHUP | POLLERR)) {
            ssize_t n = recv(s, in, sizeof in, MSG_DONTWAIT);
            if (n < 0) fail("recv");
            if (n == 0) open = 0;
            if (n > 0 && write(1, in, n) != n) fail("write");
        }
    }
    return 0;
}
