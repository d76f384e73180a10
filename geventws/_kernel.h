/* The few lines that need C: masking (RFC 6455, 5.3), and the system calls of a plain socket. */
#ifndef GEVENTWS_KERNEL_H
#define GEVENTWS_KERNEL_H

#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* XOR size octets of source into target; key is the masking key as a little-endian number, and
   phase the place of the first octet in its frame's payload. target may be source. */
static inline void geventws_xor(unsigned char *target, const unsigned char *source, ptrdiff_t size,
                                uint32_t key, ptrdiff_t phase)
{
    unsigned shift = (unsigned)(phase & 3) * 8;
    uint64_t wide, word;
    ptrdiff_t at = 0;

    if (key == 0) {
        memmove(target, source, (size_t)size);
        return;
    }
    if (shift)
        key = (key >> shift) | (key << (32 - shift));
    wide = ((uint64_t)key << 32) | key;
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    wide = __builtin_bswap64(wide);
#endif
    for (; at + 8 <= size; at += 8) {
        memcpy(&word, source + at, 8);
        word ^= wide;
        memcpy(target + at, &word, 8);
    }
    for (; at < size; at++)
        target[at] = source[at] ^ (unsigned char)(key >> ((at & 3) * 8));
}

/* Write the header of an unmasked frame (RFC 6455, 5.2), at most 10 octets; returns their number. */
static inline int geventws_write_header(unsigned char *header, int first, ptrdiff_t size)
{
    int at, count = size < 126 ? 0 : size < 65536 ? 2 : 8;
    header[0] = (unsigned char)first;
    header[1] = (unsigned char)(count == 0 ? size : count == 2 ? 126 : 127);
    for (at = 0; at < count; at++)
        header[2 + at] = (unsigned char)((uint64_t)size >> (8 * (count - 1 - at)));
    return 2 + count;
}

#ifdef _WIN32
#define GEVENTWS_HAS_SYSCALLS 0
static inline ptrdiff_t geventws_recv(int fd, char *buffer, ptrdiff_t size) { return -1; }
static inline ptrdiff_t geventws_send(int fd, const char *octets, ptrdiff_t size) { return -1; }
static inline ptrdiff_t geventws_send_frames(int fd, int opcode, const unsigned char *payload, ptrdiff_t size,
                                             ptrdiff_t threshold)
{
    return -1;
}
static inline int geventws_is_ended(int fd) { return -1; }
static inline void geventws_shut_write(int fd) {}
static inline void geventws_close(int fd) {}
static inline double geventws_monotonic(void) { return 0.0; }
#else
#include <sys/socket.h>
#ifdef __linux__
#include <sys/syscall.h>
#endif
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>
#define GEVENTWS_HAS_SYSCALLS 1
#ifndef MSG_NOSIGNAL
#define MSG_NOSIGNAL 0
#endif

/* As they are, recv and send are points where a thread may be cancelled, which costs in a process with threads;
   AddressSanitizer has to see them. */
#if defined(SYS_recvfrom) && defined(SYS_sendto) && !defined(__SANITIZE_ADDRESS__)
#define GEVENTWS_RECV(fd, buffer, size) syscall(SYS_recvfrom, fd, buffer, size, 0, NULL, NULL)
#define GEVENTWS_SEND(fd, octets, size) syscall(SYS_sendto, fd, octets, size, MSG_NOSIGNAL, NULL, 0)
#else
#define GEVENTWS_RECV(fd, buffer, size) recv(fd, buffer, size, 0)
#define GEVENTWS_SEND(fd, octets, size) send(fd, octets, size, MSG_NOSIGNAL)
#endif

/* Both return the octets moved, or minus errno. */
static inline ptrdiff_t geventws_recv(int fd, char *buffer, ptrdiff_t size)
{
    ptrdiff_t moved;
    do
        moved = GEVENTWS_RECV(fd, buffer, (size_t)size);
    while (moved < 0 && errno == EINTR);
    return moved < 0 ? -(ptrdiff_t)errno : moved;
}

static inline ptrdiff_t geventws_send(int fd, const char *octets, ptrdiff_t size)
{
    ptrdiff_t moved;
    do
        moved = GEVENTWS_SEND(fd, octets, (size_t)size);
    while (moved < 0 && errno == EINTR);
    return moved < 0 ? -(ptrdiff_t)errno : moved;
}

/* How many frames one system call sends, and up to how many octets of payload a copy is cheaper than a list of pieces. */
#define GEVENTWS_FRAMES 128
#define GEVENTWS_SMALL_FRAME 4096

/* Send a message as frames of at most threshold octets, the payload from where it lies. Returns how many octets of the
   frames the kernel took, or minus errno; 0 for more frames than GEVENTWS_FRAMES: one copy is cheaper than many calls. */
static inline ptrdiff_t geventws_send_frames(int fd, int opcode, const unsigned char *payload, ptrdiff_t size,
                                             ptrdiff_t threshold)
{
    unsigned char headers[GEVENTWS_FRAMES][10], frame[10 + GEVENTWS_SMALL_FRAME];
    struct iovec parts[2 * GEVENTWS_FRAMES];
    struct msghdr message = {0};
    ptrdiff_t at = 0, moved, piece;
    int count;

    if (size <= threshold && size <= GEVENTWS_SMALL_FRAME) {
        count = geventws_write_header(frame, 0x80 | opcode, size);
        memcpy(frame + count, payload, (size_t)size);
        return geventws_send(fd, (const char *)frame, count + size);
    }
    if ((size - 1) / threshold >= GEVENTWS_FRAMES)
        return 0;
    for (count = 0; at < size; count++) {
        piece = size - at < threshold ? size - at : threshold;
        parts[2 * count].iov_base = headers[count];
        parts[2 * count].iov_len = (size_t)geventws_write_header(
            headers[count], (count ? 0 : opcode) | (at + piece == size ? 0x80 : 0), piece);
        parts[2 * count + 1].iov_base = (void *)(payload + at);
        parts[2 * count + 1].iov_len = (size_t)piece;
        at += piece;
    }
    message.msg_iov = parts;
    message.msg_iovlen = 2 * (size_t)count;
    do
        moved = sendmsg(fd, &message, MSG_NOSIGNAL);
    while (moved < 0 && errno == EINTR);
    return moved < 0 ? -(ptrdiff_t)errno : moved;
}

/* Whether the peer has ended its side, or the connection is broken; nothing is taken. */
static inline int geventws_is_ended(int fd)
{
    char octet;
    ptrdiff_t size;
    do
        size = recv(fd, &octet, 1, MSG_PEEK);
    while (size < 0 && errno == EINTR);
    return size == 0 || (size < 0 && errno != EAGAIN && errno != EWOULDBLOCK);
}

static inline void geventws_shut_write(int fd)
{
    shutdown(fd, SHUT_WR);
}

/* Not again after EINTR: Linux has closed it by then, and the number may be another's. */
static inline void geventws_close(int fd)
{
    close(fd);
}

static inline double geventws_monotonic(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}
#endif

#endif
