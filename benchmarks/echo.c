/* The floor of the benchmarks: the least that a correct WebSocket echo server on epoll does, in one thread.
 *
 *     echo [--port N] [--deflate] [--tls CERTIFICATE.pem]
 *
 * It prints "ready" when it listens on 127.0.0.1; SIGTERM ends it. What a path does:
 *
 *     /broadcast  sends each message to all that are connected to this path, the sender included
 *     /sink       answers only the text "count?": with the number of messages since the last one, as a text
 *     /           and all others echo
 *
 * Strategy: a read goes into one buffer that all connections share. An echoed frame is unmasked to where its reply
 * belongs, over what was read: a reply is never longer than what it answers, so all replies to a read lie one behind
 * the other and leave in one write, and an octet is touched once. Only what does not fit that is copied: a frame that
 * is not complete yet (the rest is read straight behind its beginning), fragments, compressed messages, and output
 * that the socket has no room for. A peer that does not read is not read from.
 *
 * It checks what a server must (RFC 6455): the handshake, masks, reserved bits, opcodes, fragments, sizes, UTF-8. It
 * has no time-outs. permessage-deflate keeps the windows of both sides unless the client asks for the opposite; zlib's
 * level is 6.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <getopt.h>
#include <malloc.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <zlib.h>

#include "websocket.h"

enum { READ_SIZE = 1 << 18, MAX_MESSAGE_SIZE = 1 << 24, REPLY_ROOM = 10, EVENT_COUNT = 512, BACKLOG = 4096 };
enum { NORMAL = 1000, PROTOCOL_ERROR = 1002, INVALID_PAYLOAD = 1007, TOO_LARGE = 1009 };

typedef enum { ECHO, BROADCAST, SINK } Kind;
/* ENDING: the connection is closed when its output has gone. */
typedef enum { SECURING, UPGRADING, OPEN, ENDING } State;

typedef struct {
    Channel channel;
    State state;
    Kind kind;
    bool is_writing;  /* waits for room in the socket, and is not read from */
    Buffer input;     /* a head or a frame of which something is missing */
    Buffer output;
    Buffer fragments; /* the message that is not complete */
    uint8_t first;    /* the first octet of its first frame; 0: there is none */
    uint32_t message_count;
    size_t place; /* among the receivers */
    z_stream *inflater, *deflater;
    bool keeps_window;
} Conn;

static int epoll;
static bool may_deflate;
static SSL_CTX *tls_context;
static uint8_t inbox[READ_SIZE];
static struct {
    Conn **conns;
    size_t count, room;
} receivers;

static void stop(const char *what)
{
    perror(what);
    exit(1);
}

/* Output */

static void wait_for(Conn *conn, bool is_writing)
{
    struct epoll_event event = {.events = is_writing ? EPOLLOUT : EPOLLIN, .data.ptr = conn};

    if (conn->is_writing != is_writing)
        epoll_ctl(epoll, EPOLL_CTL_MOD, conn->channel.fd, &event);
    conn->is_writing = is_writing;
}

static void append_frame(Buffer *buffer, uint8_t first, const void *payload, size_t size)
{
    uint8_t header[MAX_HEADER_SIZE];

    buffer_append(buffer, header, write_header(header, first, size, NULL));
    buffer_append(buffer, payload, size);
}

static void end(Conn *conn, int code)
{
    uint8_t payload[2] = {(uint8_t)(code >> 8), (uint8_t)code};

    append_frame(&conn->output, FIN | CLOSE, payload, sizeof payload);
    conn->state = ENDING;
}

static void broadcast(uint8_t first, const uint8_t *payload, size_t size)
{
    static Buffer frame;

    frame.end = 0;
    append_frame(&frame, first, payload, size);
    for (size_t place = 0; place < receivers.count; place++) {
        Conn *conn = receivers.conns[place];
        /* One that is broken makes an event of its own. */
        if (channel_send(&conn->channel, &conn->output, frame.octets, frame.end) == WOULD_BLOCK)
            wait_for(conn, true);
    }
}

static void count(Conn *conn, uint8_t first, const uint8_t *payload, size_t size)
{
    char reply[16];

    if (first != (FIN | TEXT) || size != 6 || memcmp(payload, "count?", 6) != 0) {
        conn->message_count++;
        return;
    }
    append_frame(&conn->output, FIN | TEXT, reply, (size_t)snprintf(reply, sizeof reply, "%u", conn->message_count));
    conn->message_count = 0;
}

/* Append a message to the output, compressed (RFC 7692, 7.2.1); one without an octet is not worth it. */
static void append_compressed(Conn *conn, uint8_t first, uint8_t *payload, size_t size)
{
    z_stream *deflater = conn->deflater;
    size_t room = size + size / 1000 + 64, compressed, header_size;
    uint8_t *target;

    if (!size) {
        append_frame(&conn->output, first, payload, size);
        return;
    }
    target = buffer_reserve(&conn->output, REPLY_ROOM + room);
    deflater->next_in = payload;
    deflater->avail_in = (uInt)size;
    deflater->next_out = target + REPLY_ROOM;
    deflater->avail_out = (uInt)room;
    deflate(deflater, Z_SYNC_FLUSH);
    if (!conn->keeps_window)
        deflateReset(deflater);
    compressed = room - deflater->avail_out - 4;
    header_size = write_header(target, first | RSV1, compressed, NULL);
    memmove(target + header_size, target + REPLY_ROOM, compressed);
    conn->output.end += header_size + compressed;
}

/* Input */

static bool is_utf8(const uint8_t *octets, size_t size)
{
    size_t at = 0, tail;

    while (at < size) {
        uint64_t word;
        uint8_t lead = octets[at], low = 0x80, high = 0xBF;
        if (at + 8 <= size && (memcpy(&word, octets + at, 8), !(word & 0x8080808080808080u))) {
            at += 8;
            continue;
        }
        at++;
        if (lead < 0x80)
            continue;
        if (lead < 0xC2 || lead > 0xF4)
            return false;
        tail = lead < 0xE0 ? 1 : lead < 0xF0 ? 2 : 3;
        if (size - at < tail)
            return false;
        /* Overlong forms, surrogates, and what is beyond the last character differ in their second octet. */
        if (lead == 0xE0)
            low = 0xA0;
        else if (lead == 0xED)
            high = 0x9F;
        else if (lead == 0xF0)
            low = 0x90;
        else if (lead == 0xF4)
            high = 0x8F;
        for (; tail; tail--, at++, low = 0x80, high = 0xBF)
            if (octets[at] < low || octets[at] > high)
                return false;
    }
    return true;
}

/* Inflate a message; returns 0 or the code to close with. */
static int inflate_message(Conn *conn, Buffer *target, const uint8_t *payload, size_t size)
{
    static const uint8_t tail[4] = {0, 0, 0xFF, 0xFF};
    z_stream *inflater = conn->inflater;
    int result;

    target->end = 0;
    for (int part = 0; part < 2; part++) {
        inflater->next_in = (uint8_t *)(part ? tail : payload);
        inflater->avail_in = part ? sizeof tail : (uInt)size;
        do {
            inflater->next_out = buffer_reserve(target, 65536);
            inflater->avail_out = (uInt)(target->room - target->end);
            result = inflate(inflater, Z_SYNC_FLUSH);
            target->end = target->room - inflater->avail_out;
            if (target->end > MAX_MESSAGE_SIZE)
                return TOO_LARGE;
            if (result == Z_STREAM_END)
                inflateReset(inflater);
            else if (result != Z_OK && result != Z_BUF_ERROR)
                return INVALID_PAYLOAD;
        } while (!inflater->avail_out || (inflater->avail_in && result != Z_BUF_ERROR));
    }
    return 0;
}

/* Returns 0, or the code to close with. */
static int check_header(const Conn *conn, const Frame *frame)
{
    int opcode = frame->first & 15;
    bool is_control = opcode & 8, is_final = frame->first & FIN;

    if (!frame->is_masked || opcode > PONG || (opcode > BINARY && !is_control))
        return PROTOCOL_ERROR;
    if (is_control)
        return is_final && frame->size <= MAX_CONTROL_SIZE && !(frame->first & RSV) ? 0 : PROTOCOL_ERROR;
    if ((frame->first & RSV) && ((frame->first & RSV) != RSV1 || !conn->deflater || opcode == CONTINUATION))
        return PROTOCOL_ERROR;
    if ((opcode == CONTINUATION) != (conn->first != 0))
        return PROTOCOL_ERROR;
    return frame->size > MAX_MESSAGE_SIZE - conn->fragments.end ? TOO_LARGE : 0;
}

static int check_close(const uint8_t *payload, size_t size)
{
    int code = size < 2 ? NORMAL : payload[0] << 8 | payload[1];
    bool is_known = (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);

    if (size == 1 || !is_known)
        return PROTOCOL_ERROR;
    return size > 2 && !is_utf8(payload + 2, size - 2) ? INVALID_PAYLOAD : code;
}

/* Take a message that is complete, and unmasked. */
static void take_message(Conn *conn, uint8_t first, uint8_t *payload, size_t size)
{
    static Buffer inflated;
    int code = 0;

    if (first & RSV1) {
        code = inflate_message(conn, &inflated, payload, size);
        payload = inflated.octets;
        size = inflated.end;
        first &= (uint8_t)~RSV1;
    }
    if (!code && first == (FIN | TEXT) && !is_utf8(payload, size))
        code = INVALID_PAYLOAD;
    if (code)
        end(conn, code);
    else if (conn->kind == BROADCAST)
        broadcast(first, payload, size);
    else if (conn->kind == SINK)
        count(conn, first, payload, size);
    else if (conn->deflater)
        append_compressed(conn, first, payload, size);
    else
        append_frame(&conn->output, first, payload, size);
}

static void take_fragment(Conn *conn, uint8_t first, uint8_t *payload, size_t size)
{
    if (!conn->first)
        conn->first = first | FIN;
    buffer_append(&conn->fragments, payload, size);
    if (!(first & FIN))
        return;
    take_message(conn, conn->first, conn->fragments.octets, conn->fragments.end);
    conn->first = 0;
    buffer_free(&conn->fragments);
}

static void take_frame(Conn *conn, const Frame *frame, uint8_t *payload)
{
    int opcode = frame->first & 15;

    mask(payload, payload, frame->size, frame->key);
    if (opcode == CLOSE)
        end(conn, check_close(payload, frame->size));
    else if (opcode <= BINARY && (conn->first || !(frame->first & FIN)))
        take_fragment(conn, frame->first, payload, frame->size);
    else if (opcode <= BINARY)
        take_message(conn, frame->first, payload, frame->size);
}

static bool is_answered_in_place(const Conn *conn, uint8_t first)
{
    if ((first & 15) == PING)
        return true;
    return conn->kind == ECHO && !conn->deflater && !conn->first && (first & FIN) && !(first & 8);
}

/* Unmask a frame to where its reply belongs; returns the reply's size, or 0 for a text that is none. */
static size_t answer_in_place(uint8_t *reply, const Frame *frame, const uint8_t *payload)
{
    uint8_t first = (frame->first & 15) == PING ? FIN | PONG : frame->first;
    size_t header_size = write_header(reply, first, frame->size, NULL);

    mask(reply + header_size, payload, frame->size, frame->key);
    if (first == (FIN | TEXT) && !is_utf8(reply + header_size, frame->size))
        return 0;
    return header_size + frame->size;
}

/* Answer the frames that are complete; returns how much was used. */
static size_t answer_frames(Conn *conn, uint8_t *octets, size_t size)
{
    size_t at = 0, replied = 0;
    uint8_t *replies = octets;
    Frame frame;

    while (conn->state == OPEN && parse_header(octets + at, size - at, &frame)) {
        uint8_t *payload = octets + at + frame.header_size;
        int code = check_header(conn, &frame);
        if (!code && size - at - frame.header_size < frame.size)
            break;
        if (!code && is_answered_in_place(conn, frame.first)) {
            size_t added;
            /* A server's header is shorter by the key: so the first payload remains where it is. */
            if (!replied)
                replies = octets + at + sizeof frame.key;
            added = answer_in_place(replies + replied, &frame, payload);
            code = added ? 0 : INVALID_PAYLOAD;
            replied += added;
        } else if (!code) {
            /* What comes now goes behind the replies so far. */
            buffer_append(&conn->output, replies, replied);
            replied = 0;
            take_frame(conn, &frame, payload);
        }
        if (code) {
            buffer_append(&conn->output, replies, replied);
            replied = 0;
            end(conn, code);
        }
        at += frame.header_size + frame.size;
    }
    if (channel_send(&conn->channel, &conn->output, replies, replied) == BROKEN)
        conn->state = ENDING;
    return at;
}

/* The opening handshake */

static bool init_deflate(Conn *conn, bool keeps_window)
{
    conn->keeps_window = keeps_window;
    conn->inflater = calloc(1, sizeof *conn->inflater);
    conn->deflater = calloc(1, sizeof *conn->deflater);
    return conn->inflater && conn->deflater && inflateInit2(conn->inflater, -15) == Z_OK &&
           deflateInit2(conn->deflater, 6, Z_DEFLATED, -15, 8, Z_DEFAULT_STRATEGY) == Z_OK;
}

/* Accept the first offer that can be met (RFC 7692, 5.1); returns the answer's line, or nothing. */
static const char *negotiate(Conn *conn, char *offers)
{
    char *offer, *item;

    while ((offer = next_item(&offers, ",")) != NULL) {
        bool keeps_window = true, is_met = strcmp(next_item(&offer, ";"), "permessage-deflate") == 0;
        while (is_met && (item = next_item(&offer, ";")) != NULL) {
            if (strcmp(item, "server_no_context_takeover") == 0)
                keeps_window = false;
            else
                /* These say what the client can do, and ask for nothing. */
                is_met = strcmp(item, "client_no_context_takeover") == 0 ||
                         strncmp(item, "client_max_window_bits", 22) == 0;
        }
        if (is_met && init_deflate(conn, keeps_window))
            return keeps_window ? "Sec-WebSocket-Extensions: permessage-deflate\r\n"
                                : "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n";
    }
    return "";
}

static Kind choose_kind(const char *head)
{
    if (strncmp(head, "GET /broadcast ", 15) == 0)
        return BROADCAST;
    return strncmp(head, "GET /sink ", 10) == 0 ? SINK : ECHO;
}

static void add_receiver(Conn *conn)
{
    if (receivers.count == receivers.room) {
        receivers.room = receivers.room * 2 + 64;
        receivers.conns = realloc(receivers.conns, receivers.room * sizeof conn);
        if (!receivers.conns)
            stop("realloc");
    }
    conn->place = receivers.count;
    receivers.conns[receivers.count++] = conn;
}

/* Answer an opening handshake that is complete and ends in a zero. */
static void upgrade(Conn *conn, const char *head)
{
    char key[64], offers[512], accept[ACCEPT_SIZE + 1], answer[512];
    const char *extension = "";

    if (strncmp(head, "GET /", 5) != 0 || !find_field(head, "Sec-WebSocket-Key", key, sizeof key)) {
        static const char refusal[] = "HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";
        buffer_append(&conn->output, refusal, sizeof refusal - 1);
        conn->state = ENDING;
        return;
    }
    if (may_deflate && find_field(head, "Sec-WebSocket-Extensions", offers, sizeof offers))
        extension = negotiate(conn, offers);
    compute_accept(key, strlen(key), accept);
    buffer_append(&conn->output, answer,
                  (size_t)snprintf(answer, sizeof answer,
                                   "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                                   "Sec-WebSocket-Accept: %s\r\n%s\r\n",
                                   accept, extension));
    conn->state = OPEN;
    conn->kind = choose_kind(head);
    if (conn->kind == BROADCAST)
        add_receiver(conn);
}

static size_t answer_head(Conn *conn, uint8_t *octets, size_t size)
{
    uint8_t *last = memmem(octets, size, "\r\n\r\n", 4);

    if (!last) {
        if (size > MAX_HEAD_SIZE)
            conn->state = ENDING;
        return 0;
    }
    last[3] = 0;
    upgrade(conn, (char *)octets);
    return (size_t)(last + 4 - octets);
}

/* Connections */

static void drop(Conn *conn)
{
    if (conn->kind == BROADCAST) {
        receivers.conns[conn->place] = receivers.conns[--receivers.count];
        receivers.conns[conn->place]->place = conn->place;
    }
    if (conn->deflater) {
        inflateEnd(conn->inflater);
        deflateEnd(conn->deflater);
        free(conn->inflater);
        free(conn->deflater);
    }
    buffer_free(&conn->input);
    buffer_free(&conn->output);
    buffer_free(&conn->fragments);
    channel_close(&conn->channel);
    free(conn);
}

/* Keep what is not complete, with room for what is missing. */
static void keep(Conn *conn, const uint8_t *octets, size_t size)
{
    size_t wanted = READ_SIZE;
    Frame frame;

    if (conn->state == OPEN && parse_header(octets, size, &frame) && frame.header_size + frame.size > wanted)
        wanted = frame.header_size + frame.size;
    if (conn->input.end) {
        memmove(conn->input.octets, octets, size);
        conn->input.end = size;
    } else {
        memcpy(buffer_reserve(&conn->input, wanted), octets, size);
        conn->input.end = size;
    }
    buffer_reserve(&conn->input, wanted - size);
}

static void take(Conn *conn, uint8_t *octets, size_t size)
{
    size_t used = 0;

    if (conn->state == UPGRADING)
        used = answer_head(conn, octets, size);
    if (conn->state == OPEN)
        used += answer_frames(conn, octets + used, size - used);
    if (used < size && conn->state != ENDING)
        keep(conn, octets + used, size - used);
    else
        buffer_free(&conn->input);
}

/* Read what has come; false at the end of the connection. */
static bool receive(Conn *conn)
{
    size_t room;
    ssize_t moved;

    do {
        Buffer *input = &conn->input;
        bool is_direct = !input->end;
        room = is_direct ? READ_SIZE : input->room - input->end;
        moved = channel_read(&conn->channel, is_direct ? inbox : input->octets + input->end, room);
        if (moved <= 0)
            return moved == WOULD_BLOCK;
        if (is_direct) {
            take(conn, inbox, (size_t)moved);
        } else {
            input->end += (size_t)moved;
            take(conn, input->octets, input->end);
        }
        /* What OpenSSL still holds would make no event. */
    } while (conn->channel.tls && (size_t)moved == room && conn->state != ENDING && !buffer_size(&conn->output));
    return true;
}

static void advance(Conn *conn)
{
    int result = 1;

    if (conn->state == SECURING) {
        result = channel_secure(&conn->channel);
        if (result == WOULD_BLOCK)
            return;
        conn->state = UPGRADING;
    }
    if (result != 1 || channel_flush(&conn->channel, &conn->output) == BROKEN) {
        drop(conn);
        return;
    }
    if (!buffer_size(&conn->output) && conn->state != ENDING && !receive(conn)) {
        drop(conn);
        return;
    }
    if (conn->state == ENDING && channel_flush(&conn->channel, &conn->output) != WOULD_BLOCK)
        drop(conn);
    else
        wait_for(conn, buffer_size(&conn->output) > 0);
}

static void accept_all(int listener)
{
    struct epoll_event event = {.events = EPOLLIN};
    int fd, on = 1;

    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)) >= 0) {
        Conn *conn = calloc(1, sizeof *conn);
        if (!conn)
            stop("calloc");
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        conn->channel.fd = fd;
        conn->state = tls_context ? SECURING : UPGRADING;
        if (tls_context) {
            conn->channel.tls = SSL_new(tls_context);
            SSL_set_fd(conn->channel.tls, fd);
            SSL_set_accept_state(conn->channel.tls);
        }
        event.data.ptr = conn;
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    }
    if (errno != EAGAIN && errno != ECONNABORTED)
        stop("accept");
}

/* The program */

static int listen_on(int port)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, BACKLOG) != 0)
        stop("listen");
    return listener;
}

static void load_certificate(const char *path)
{
    tls_context = make_tls_context(TLS_server_method());
    if (SSL_CTX_use_certificate_chain_file(tls_context, path) != 1 ||
        SSL_CTX_use_PrivateKey_file(tls_context, path, SSL_FILETYPE_PEM) != 1) {
        ERR_print_errors_fp(stderr);
        exit(2);
    }
}

static int parse_options(int count, char **arguments)
{
    static const struct option known[] = {
        {"port", required_argument, NULL, 'p'}, {"deflate", no_argument, NULL, 'd'},
        {"tls", required_argument, NULL, 't'}, {0}};
    int port = 9500, option;

    while ((option = getopt_long(count, arguments, "", known, NULL)) != -1) {
        if (option == 'p')
            port = atoi(optarg);
        else if (option == 'd')
            may_deflate = true;
        else if (option == 't')
            load_certificate(optarg);
        else
            exit(2);
    }
    if (optind < count || port < 1 || port > 65535) {
        fputs("usage: echo [--port 1..65535] [--deflate] [--tls CERTIFICATE.pem]\n", stderr);
        exit(2);
    }
    return port;
}

int main(int count, char **arguments)
{
    int listener = listen_on(parse_options(count, arguments));
    struct epoll_event events[EVENT_COUNT], event = {.events = EPOLLIN, .data.ptr = NULL};

    raise_descriptor_limit();
    /* Large messages use the same pages again, instead of new ones that the kernel has to clear. */
    mallopt(M_MMAP_THRESHOLD, 2 * MAX_MESSAGE_SIZE);
    mallopt(M_TRIM_THRESHOLD, 8 * MAX_MESSAGE_SIZE);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    puts("ready");
    fflush(stdout);
    for (;;) {
        int ready = epoll_wait(epoll, events, EVENT_COUNT, -1);
        for (int place = 0; place < ready; place++) {
            if (events[place].data.ptr)
                advance(events[place].data.ptr);
            else
                accept_all(listener);
        }
    }
}
