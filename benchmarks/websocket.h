/* What load.c and echo.c share: buffers, a channel over TCP or TLS, and the octets of RFC 6455. */
#ifndef BENCHMARKS_WEBSOCKET_H
#define BENCHMARKS_WEBSOCKET_H

#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <openssl/ssl.h>

enum { CONTINUATION = 0, TEXT = 1, BINARY = 2, CLOSE = 8, PING = 9, PONG = 10 };
enum { FIN = 0x80, RSV1 = 0x40, RSV = 0x70, MASKED = 0x80 };
enum { MAX_CONTROL_SIZE = 125, MAX_HEADER_SIZE = 14, MAX_HEAD_SIZE = 8192, ACCEPT_SIZE = 28 };

static inline uint64_t read_clock(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* Allow as many descriptors as the system lets this process have; returns how many. */
static inline rlim_t raise_descriptor_limit(void)
{
    struct rlimit limit;

    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
    return limit.rlim_cur;
}

/* Octets that wait: those from start to end. */
typedef struct {
    uint8_t *octets;
    size_t start, end, room;
} Buffer;

static inline size_t buffer_size(const Buffer *buffer)
{
    return buffer->end - buffer->start;
}

/* Make room for so many octets behind the end; returns the end. */
static inline uint8_t *buffer_reserve(Buffer *buffer, size_t size)
{
    if (buffer->room - buffer->end < size) {
        buffer->room = buffer->end + size;
        buffer->octets = realloc(buffer->octets, buffer->room);
        if (!buffer->octets) {
            perror("realloc");
            exit(2);
        }
    }
    return buffer->octets + buffer->end;
}

static inline void buffer_append(Buffer *buffer, const void *octets, size_t size)
{
    if (!size)
        return;
    if (buffer->room - buffer->end < size)
        buffer_reserve(buffer, size + buffer->room / 2);
    memcpy(buffer->octets + buffer->end, octets, size);
    buffer->end += size;
}

static inline void buffer_free(Buffer *buffer)
{
    free(buffer->octets);
    *buffer = (Buffer){0};
}

typedef struct {
    int fd;
    SSL *tls;  /* NULL: plain TCP */
} Channel;

/* What reading, writing and the TLS handshake return beside a number of octets; reading returns 0 at the peer's end. */
enum { WOULD_BLOCK = -1, BROKEN = -2 };

static inline int channel_tls_result(Channel *channel, int result)
{
    int error = SSL_get_error(channel->tls, result);

    ERR_clear_error();
    if (error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE)
        return WOULD_BLOCK;
    return error == SSL_ERROR_ZERO_RETURN ? 0 : BROKEN;
}

/* Returns 1 when the handshake is done. */
static inline int channel_secure(Channel *channel)
{
    int result = SSL_do_handshake(channel->tls);

    return result == 1 ? 1 : channel_tls_result(channel, result);
}

static inline ssize_t channel_result(ssize_t moved)
{
    if (moved >= 0)
        return moved;
    return errno == EAGAIN || errno == EINTR ? WOULD_BLOCK : BROKEN;
}

/* Where this returns less than size, OpenSSL holds no more octets: what it holds would make no event. */
static inline ssize_t channel_read(Channel *channel, uint8_t *target, size_t size)
{
    size_t moved = 0;

    if (!channel->tls)
        return channel_result(recv(channel->fd, target, size, 0));
    while (moved < size) {
        int result = SSL_read(channel->tls, target + moved, (int)(size - moved));
        if (result <= 0)
            return moved ? (ssize_t)moved : channel_tls_result(channel, result);
        moved += (size_t)result;
    }
    return (ssize_t)moved;
}

/* Whether the peer's end of TLS has been read, maybe behind the last octets: it would make no event either. */
static inline bool channel_has_ended(const Channel *channel)
{
    return channel->tls && SSL_get_shutdown(channel->tls) & SSL_RECEIVED_SHUTDOWN;
}

static inline ssize_t channel_write(Channel *channel, const uint8_t *octets, size_t size)
{
    size_t moved = 0;

    if (!channel->tls)
        return channel_result(send(channel->fd, octets, size, MSG_NOSIGNAL));
    while (moved < size) {
        int result = SSL_write(channel->tls, octets + moved, (int)(size - moved));
        if (result <= 0)
            return moved ? (ssize_t)moved : channel_tls_result(channel, result);
        moved += (size_t)result;
    }
    return (ssize_t)moved;
}

static inline void channel_close(Channel *channel)
{
    if (channel->tls) {
        SSL_shutdown(channel->tls);
        ERR_clear_error();
        SSL_free(channel->tls);
        channel->tls = NULL;
    }
    close(channel->fd);
}

/* Write what a buffer holds; free it when nothing is left. Returns 0, WOULD_BLOCK or BROKEN. */
static inline int channel_flush(Channel *channel, Buffer *output)
{
    while (buffer_size(output)) {
        ssize_t moved = channel_write(channel, output->octets + output->start, buffer_size(output));
        if (moved < 0)
            return (int)moved;
        output->start += (size_t)moved;
    }
    buffer_free(output);
    return 0;
}

/* Write what waits, and these octets behind it; what there is no room for waits. Returns as channel_flush. */
static inline int channel_send(Channel *channel, Buffer *output, const uint8_t *octets, size_t size)
{
    if (size && !buffer_size(output)) {
        ssize_t moved = channel_write(channel, octets, size);
        if (moved == (ssize_t)size || moved == BROKEN)
            return moved == BROKEN ? BROKEN : 0;
        if (moved > 0) {
            octets += moved;
            size -= (size_t)moved;
        }
    }
    buffer_append(output, octets, size);
    return channel_flush(channel, output);
}

static inline SSL_CTX *make_tls_context(const SSL_METHOD *method)
{
    SSL_CTX *context = SSL_CTX_new(method);

    SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER |
                                  SSL_MODE_RELEASE_BUFFERS);
    /* One recv for a record instead of two; an end without close_notify is told as an end. */
    SSL_CTX_set_read_ahead(context, 1);
    SSL_CTX_set_options(context, SSL_OP_IGNORE_UNEXPECTED_EOF);
    return context;
}

typedef struct {
    uint8_t first;  /* FIN, the reserved bits and the opcode */
    bool is_masked;
    uint32_t key;  /* as its octets lie in memory */
    uint64_t size;
    size_t header_size;
} Frame;

/* Parse a frame's header; false when more octets are needed (RFC 6455, 5.2). */
static inline bool parse_header(const uint8_t *octets, size_t count, Frame *frame)
{
    size_t at = 2, width;

    if (count < 2)
        return false;
    frame->first = octets[0];
    frame->is_masked = octets[1] & MASKED;
    frame->size = octets[1] & 127;
    width = frame->size < 126 ? 0 : frame->size == 126 ? 2 : 8;
    frame->header_size = 2 + width + (frame->is_masked ? 4 : 0);
    if (count < frame->header_size)
        return false;
    if (width) {
        for (frame->size = 0; at < 2 + width; at++)
            frame->size = frame->size << 8 | octets[at];
    }
    if (frame->is_masked)
        memcpy(&frame->key, octets + at, 4);
    return true;
}

/* Write the header of a frame that is not masked, or masked with a key; returns its size. */
static inline size_t write_header(uint8_t *target, uint8_t first, uint64_t size, const uint32_t *key)
{
    int width = size < 126 ? 0 : size < 65536 ? 2 : 8;
    size_t at = 2;

    target[0] = first;
    target[1] = (uint8_t)((key ? MASKED : 0) | (width == 0 ? size : width == 2 ? 126 : 127));
    while (width--)
        target[at++] = (uint8_t)(size >> 8 * width);
    if (key) {
        memcpy(target + at, key, 4);
        at += 4;
    }
    return at;
}

typedef uint32_t Lanes __attribute__((vector_size(32)));

/* Mask or unmask a payload (5.3). The target may be the source, or lie before it, overlapping or not. */
static inline void mask(uint8_t *target, const uint8_t *source, size_t size, uint32_t key)
{
    Lanes keys = (Lanes){0} + key, lanes;
    uint32_t word;
    size_t at = 0;

    for (; at + sizeof lanes <= size; at += sizeof lanes) {
        memcpy(&lanes, source + at, sizeof lanes);
        lanes ^= keys;
        memcpy(target + at, &lanes, sizeof lanes);
    }
    for (; at + sizeof word <= size; at += sizeof word) {
        memcpy(&word, source + at, sizeof word);
        word ^= key;
        memcpy(target + at, &word, sizeof word);
    }
    for (; at < size; at++)
        target[at] = source[at] ^ ((uint8_t *)&key)[at & 3];
}

/* Compute the Sec-WebSocket-Accept for a key (4.2.2); accept gets ACCEPT_SIZE characters and a zero. */
static inline void compute_accept(const char *key, size_t size, char *accept)
{
    static const char guid[] = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    uint8_t joined[128], digest[SHA_DIGEST_LENGTH];

    if (size > sizeof joined - sizeof guid)
        size = sizeof joined - sizeof guid;
    memcpy(joined, key, size);
    memcpy(joined + size, guid, sizeof guid - 1);
    SHA1(joined, size + sizeof guid - 1, digest);
    EVP_EncodeBlock((unsigned char *)accept, digest, sizeof digest);
}

/* Copy the value of a field out of an HTTP head that ends in a zero; false when it is missing, or too long. */
static inline bool find_field(const char *head, const char *name, char *value, size_t room)
{
    size_t name_size = strlen(name), size;
    const char *line = head;

    while ((line = strstr(line, "\r\n")) != NULL) {
        line += 2;
        if (strncasecmp(line, name, name_size) != 0 || line[name_size] != ':')
            continue;
        line += name_size + 1;
        line += strspn(line, " \t");
        size = strcspn(line, "\r");
        while (size && strchr(" \t", line[size - 1]))
            size--;
        if (size >= room)
            return false;
        memcpy(value, line, size);
        value[size] = 0;
        return true;
    }
    return false;
}

/* Cut the next item off a list, spaces and tabs around it included; NULL when there is none. */
static inline char *next_item(char **list, const char *separator)
{
    char *item = strsep(list, separator), *end;

    if (!item)
        return NULL;
    item += strspn(item, " \t");
    end = item + strlen(item);
    while (end > item && strchr(" \t", end[-1]))
        end--;
    *end = 0;
    return item;
}

#endif
