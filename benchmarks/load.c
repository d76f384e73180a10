/* The load generator of the benchmarks: WebSocket clients on epoll in one thread, which check every reply.
 *
 *     load [options] HOST PORT PATH
 *
 * It prints one line of JSON with what it measured, and the first errors on standard error. Exit status: 0 when there
 * were no errors, 1 when there were, 2 for options that make no sense.
 *
 *     --connections N          how many connections (1); opened beforehand, but for --mode connect
 *     --in-flight N            echo: messages on the way on each connection (1)
 *     --rate R                 echo: so many messages a second in all, whether replies come or not
 *     --size OCTETS            of each message (32); --text (the default) is like JSON, --binary is random
 *     --seconds S --warm-up S  how long to measure (2), and what to leave out before (0.3)
 *     --timeout S              without a sign of life for so long, a connection has failed (10)
 *     --tls                    over TLS; the certificate is not verified
 *     --deflate                offer permessage-deflate, and send all messages compressed where it is accepted
 *     --deflate-offer P        the same with other parameters than "client_no_context_takeover"
 *     --pids P[,P...]          the server's processes, whose CPU time and memory are to be reported
 *
 * What --mode makes of the connections:
 *
 *     echo       each has --in-flight messages on the way, and sends another for each reply; with --rate all together
 *                send so many a second, whether replies come or not
 *     connect    each connects, upgrades, has one message echoed, makes the closing handshake, waits until the server
 *                ends TCP, and begins again; a message is one such connection
 *     idle       each has one message echoed and then rests, while the memory of the server's processes is read
 *     broadcast  one sends a message which the server sends to all, and the next when all have it; a message is one
 *                delivery
 *     fan-in     each sends 16 messages and "count?", waits for the text "16", and begins again; a message is one that
 *                was counted
 *
 * Strategy: what could make this the bottleneck is done beforehand or not at all. The payloads are prepared (and
 * compressed, each on its own), so sending is one pass that masks with a random key. A reply is compared while its
 * octets are still in the cache, piece by piece as they come, and is never assembled, so large messages need no
 * memory. Replies to one read make one write. Opcode, length, masking, reserved bits and order of every reply are
 * checked, the content of every one up to 1 KiB and of one in 16 beyond; of compressed replies the first few of each
 * connection are inflated and then, where the server keeps no window, one in 16.
 *
 * Memory stays bounded: no message is built for a connection as long as its socket has no room for the last one.
 *
 * A connection opens, rests until all are open, works through the warm-up and the measured window, gets what it still
 * waits for, and closes. Only replies within the window count, whenever their messages were sent. Latency begins just
 * before a message is written, or when it is due (--rate), and ends just after the read that completes the reply.
 */
#define _GNU_SOURCE
#include <getopt.h>
#include <math.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <zlib.h>

#include "websocket.h"

enum { INBOX_SIZE = 1 << 18, BATCH_SIZE = 1 << 18, EVENT_COUNT = 512, MAX_SIZE = 1 << 24, MAX_PIDS = 64 };
/* Of the opening handshakes: a server's backlog may be short. */
enum { MAX_OPENING = 100 };
enum { PAYLOAD_COUNT = 64, BURST = 16 };
enum { ALWAYS_CHECKED_SIZE = 1024, CHECKED_SHARE = 16, INFLATED_COUNT = 3 };
/* From so many loopback addresses, so that ports don't run out. */
enum { SOURCE_COUNT = 200 };
enum { TOLD_ERRORS = 5 };
#define SECOND 1000000000ull
#define SETTLE (SECOND / 2)
#define CLOSING_TIME SECOND

typedef enum { ECHO, CONNECT, IDLE, BROADCAST, FAN_IN } Mode;
static const char *const mode_names[] = {"echo", "connect", "idle", "broadcast", "fan-in", NULL};

/* Options */

static struct {
    Mode mode;
    unsigned connections, in_flight;
    size_t size;
    int opcode;
    double seconds, warm_up, rate, timeout;
    bool is_tls, is_deflate;
    const char *offer;
    pid_t pids[MAX_PIDS];
    int pid_count;
    const char *host, *port, *path;
} options = {.connections = 1, .in_flight = 1, .size = 32, .opcode = TEXT, .seconds = 2, .warm_up = 0.3, .timeout = 10,
             .offer = "client_no_context_takeover"};

static const char usage[] =
    "usage: load [options] HOST PORT PATH\n"
    "  --mode echo|connect|idle|broadcast|fan-in   --connections N   --in-flight N   --rate MESSAGES_PER_SECOND\n"
    "  --size OCTETS   --text | --binary   --seconds S   --warm-up S   --timeout S   --tls\n"
    "  --deflate   --deflate-offer PARAMETERS   --pids P[,P...]\n";

static void __attribute__((format(printf, 1, 2), noreturn)) refuse(const char *format, ...)
{
    va_list values;

    va_start(values, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, values);
    fputc('\n', stderr);
    exit(2);
}

static double parse_number(const char *name, const char *text, double least, double most)
{
    char *end;
    double number = strtod(text, &end);

    if (end == text || *end || !(number >= least && number <= most))
        refuse("%s must be a number from %g to %g, not \"%s\"", name, least, most, text);
    return number;
}

static long parse_count(const char *name, const char *text, long least, long most)
{
    char *end;
    long number = strtol(text, &end, 10);

    if (end == text || *end || number < least || number > most)
        refuse("%s must be a whole number from %ld to %ld, not \"%s\"", name, least, most, text);
    return number;
}

static Mode parse_mode(const char *text)
{
    for (int mode = 0; mode_names[mode]; mode++)
        if (strcmp(text, mode_names[mode]) == 0)
            return (Mode)mode;
    refuse("--mode must be echo, connect, idle, broadcast or fan-in, not \"%s\"", text);
}

/* Add the CPU time of a process, all of its threads and those that have ended included; false when there is no such. */
static bool add_cpu_time(pid_t pid, uint64_t *total)
{
    struct timespec used;
    clockid_t clock;

    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
        return false;
    *total += (uint64_t)used.tv_sec * SECOND + (uint64_t)used.tv_nsec;
    return true;
}

static void parse_pids(const char *name, char *text)
{
    uint64_t total = 0;
    char *item;

    while ((item = next_item(&text, ",")) != NULL) {
        pid_t pid = (pid_t)parse_count(name, item, 1, 1 << 22);
        if (!add_cpu_time(pid, &total))
            refuse("%s must name processes that run; %d does not", name, (int)pid);
        if (options.pid_count == MAX_PIDS)
            refuse("%s must name at most %d processes", name, MAX_PIDS);
        options.pids[options.pid_count++] = pid;
    }
}

static void check_options(void)
{
    rlim_t limit = raise_descriptor_limit();

    if (options.in_flight > 1 && options.mode != ECHO)
        refuse("--in-flight is for --mode echo alone");
    if (options.rate > 0 && options.mode != ECHO)
        refuse("--rate is for --mode echo alone");
    if (options.connections + 32ull > limit)
        refuse("--connections must fit into the limit of %llu descriptors (ulimit -Hn) with 32 to spare; %u do not",
               (unsigned long long)limit, options.connections);
}

static void parse_options(int count, char **arguments)
{
    enum { MODE = 1, CONNECTIONS, IN_FLIGHT, SIZE, AS_TEXT, AS_BINARY, SECONDS, WARM_UP, RATE, TIMEOUT, TLS, DEFLATE,
           OFFER, PIDS };
    static const struct option known[] = {
        {"mode", required_argument, NULL, MODE}, {"connections", required_argument, NULL, CONNECTIONS},
        {"in-flight", required_argument, NULL, IN_FLIGHT}, {"size", required_argument, NULL, SIZE},
        {"text", no_argument, NULL, AS_TEXT}, {"binary", no_argument, NULL, AS_BINARY},
        {"seconds", required_argument, NULL, SECONDS}, {"warm-up", required_argument, NULL, WARM_UP},
        {"rate", required_argument, NULL, RATE}, {"timeout", required_argument, NULL, TIMEOUT},
        {"tls", no_argument, NULL, TLS}, {"deflate", no_argument, NULL, DEFLATE},
        {"deflate-offer", required_argument, NULL, OFFER}, {"pids", required_argument, NULL, PIDS}, {0}};
    char name[32];
    int option, index = 0;

    while ((option = getopt_long(count, arguments, "", known, &index)) != -1) {
        snprintf(name, sizeof name, "--%s", known[index].name);
        switch (option) {
        case MODE: options.mode = parse_mode(optarg); break;
        case CONNECTIONS: options.connections = (unsigned)parse_count(name, optarg, 1, 1000000); break;
        case IN_FLIGHT: options.in_flight = (unsigned)parse_count(name, optarg, 1, 1000000); break;
        case SIZE: options.size = (size_t)parse_count(name, optarg, 0, MAX_SIZE); break;
        case AS_TEXT: options.opcode = TEXT; break;
        case AS_BINARY: options.opcode = BINARY; break;
        case SECONDS: options.seconds = parse_number(name, optarg, 0.001, 86400); break;
        case WARM_UP: options.warm_up = parse_number(name, optarg, 0, 86400); break;
        case RATE: options.rate = parse_number(name, optarg, 0.001, 1e8); break;
        case TIMEOUT: options.timeout = parse_number(name, optarg, 0.001, 86400); break;
        case TLS: options.is_tls = true; break;
        case OFFER: options.offer = optarg; /* fall through */
        case DEFLATE: options.is_deflate = true; break;
        case PIDS: parse_pids(name, optarg); break;
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (count - optind != 3)
        refuse("HOST, PORT and PATH are needed, and nothing else\n%s", usage);
    options.host = arguments[optind];
    options.port = arguments[optind + 1];
    options.path = arguments[optind + 2];
    parse_count("PORT", options.port, 1, 65535);
    if (options.path[0] != '/')
        refuse("PATH must begin with /, not \"%s\"", options.path);
    check_options();
}

/* What is measured */

enum { SLOTS = 64, HISTOGRAM_SIZE = 59 * SLOTS };

/* Everything here begins anew with the window. */
static struct {
    uint64_t began, ended, server_cpu, own_cpu;
    uint64_t messages, replies, reply_octets;
    uint64_t latencies[HISTOGRAM_SIZE], latency_count, max_latency;
} window;

static unsigned error_count, handshake_count;

static void __attribute__((format(printf, 1, 2))) report_error(const char *format, ...)
{
    va_list values;

    if (++error_count > TOLD_ERRORS)
        return;
    va_start(values, format);
    vfprintf(stderr, format, values);
    va_end(values);
    fputc('\n', stderr);
}

/* The slots double in width with each power of two, so a latency is known to one in 64. */
static void count_latency(uint64_t latency)
{
    int shift = latency < 2 * SLOTS ? 0 : 57 - __builtin_clzll(latency);

    window.latencies[shift * SLOTS + (int)(latency >> shift)]++;
    window.latency_count++;
    if (latency > window.max_latency)
        window.max_latency = latency;
}

static double find_percentile(double share)
{
    uint64_t rank = (uint64_t)ceil(share * (double)window.latency_count), seen = 0;

    for (int place = 0; place < HISTOGRAM_SIZE; place++) {
        seen += window.latencies[place];
        if (seen >= rank && seen) {
            int shift = place < 2 * SLOTS ? 0 : place / SLOTS - 1;
            double middle = ldexp(place - shift * SLOTS + 0.5, shift);
            return fmin(middle, (double)window.max_latency) / 1000;
        }
    }
    return 0;
}

static uint64_t read_server_cpu(void)
{
    uint64_t total = 0;

    for (int place = 0; place < options.pid_count; place++)
        if (!add_cpu_time(options.pids[place], &total))
            report_error("process %d has ended", (int)options.pids[place]);
    return total;
}

static uint64_t read_own_cpu(void)
{
    uint64_t total = 0;

    add_cpu_time(getpid(), &total);
    return total;
}

static void begin_window(void)
{
    memset(&window, 0, sizeof window);
    window.server_cpu = read_server_cpu();
    window.own_cpu = read_own_cpu();
    window.began = read_clock();
}

static void end_window(void)
{
    window.ended = read_clock();
    window.own_cpu = read_own_cpu() - window.own_cpu;
    window.server_cpu = read_server_cpu() - window.server_cpu;
}

/* Return the resident octets of the server's processes. */
static double read_memory(void)
{
    double total = 0;

    for (int place = 0; place < options.pid_count; place++) {
        char path[64], line[256];
        long kibibytes;
        FILE *status;
        snprintf(path, sizeof path, "/proc/%d/status", (int)options.pids[place]);
        status = fopen(path, "r");
        while (status && fgets(line, sizeof line, status))
            if (sscanf(line, "VmRSS: %ld", &kibibytes) == 1)
                total += (double)kibibytes * 1024;
        if (status)
            fclose(status);
        else
            report_error("process %d has ended", (int)options.pids[place]);
    }
    return total;
}

/* Payloads */

typedef struct {
    const uint8_t *octets;
    size_t size;
} Payload;

static Payload payloads[PAYLOAD_COUNT], compressed[PAYLOAD_COUNT];
static const Payload counted = {(const uint8_t *)"16", 2};

/* splitmix64 */
static inline uint64_t make_random(void)
{
    static uint64_t state;
    uint64_t mixed;

    if (!state)
        state = read_clock();
    mixed = state += 0x9E3779B97F4A7C15u;
    mixed = (mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9u;
    mixed = (mixed ^ (mixed >> 27)) * 0x94D049BB133111EBu;
    return mixed ^ (mixed >> 31);
}

static size_t write_record(char *target, size_t room)
{
    static const char *const users[] = {"alice", "bernard", "charlotte", "dmitri", "eleanor", "felix", "greta", "ida"};
    static const char *const actions[] = {"login", "purchase", "comment", "logout"};
    uint64_t random = make_random();

    return (size_t)snprintf(target, room,
                            "{\"sequence\":%u,\"user\":\"%s\",\"action\":\"%s\",\"amount\":%u.%02u,"
                            "\"currency\":\"EUR\",\"is_active\":%s,\"token\":\"%08x\"},",
                            (unsigned)(random & 0xFFFFF), users[random >> 20 & 7], actions[random >> 24 & 3],
                            (unsigned)(random >> 28 & 255), (unsigned)(random >> 40) % 100,
                            random >> 50 & 1 ? "true" : "false", (unsigned)make_random());
}

/* The payloads are stretches of one text like JSON, or of random octets, that begin at different places: near each
   other, which is good for the cache, but not where a server that keeps its window would find one in the last. */
static void prepare_payloads(void)
{
    size_t near = 61, far = options.size < 1 << 18 ? options.size : 1 << 18, step = options.is_deflate ? far : near;
    size_t size = options.size + PAYLOAD_COUNT * step, at = 0;
    bool is_json = options.opcode == TEXT || options.is_deflate;
    uint8_t *octets = malloc(size + 256);

    if (!octets)
        refuse("no memory for payloads of %zu octets", options.size);
    while (at < size) {
        uint64_t random = make_random();
        if (!is_json)
            memcpy(octets + at, &random, sizeof random);
        at += is_json ? write_record((char *)octets + at, 256) : sizeof random;
    }
    for (int place = 0; place < PAYLOAD_COUNT; place++)
        payloads[place] = (Payload){octets + (size_t)place * step, options.size};
}

/* Compress each payload on its own, so that any server can inflate it whatever it keeps (RFC 7692, 7.2.1). */
static bool compress_payloads(int window_bits)
{
    z_stream stream = {0};

    if (deflateInit2(&stream, 6, Z_DEFLATED, -window_bits, 8, Z_DEFAULT_STRATEGY) != Z_OK)
        return false;
    for (int place = 0; place < PAYLOAD_COUNT; place++) {
        size_t room = deflateBound(&stream, options.size) + 64;
        uint8_t *octets = malloc(room);
        if (!octets)
            return false;
        stream.next_in = (uint8_t *)payloads[place].octets;
        stream.avail_in = (uInt)options.size;
        stream.next_out = octets;
        stream.avail_out = (uInt)room;
        deflate(&stream, Z_SYNC_FLUSH);
        compressed[place] = (Payload){octets, room - stream.avail_out - 4};
        deflateReset(&stream);
    }
    deflateEnd(&stream);
    return true;
}

/* Connections */

typedef struct Inflater {
    z_stream stream;
    struct Inflater *next;
} Inflater;

/* When the messages on the way were sent, or were due; a ring whose room is a power of two. */
typedef struct {
    uint64_t *times;
    unsigned first, count, room;
} Times;

typedef enum { NOT_OPEN, SECURING, UPGRADING, OPEN, CLOSING } State;

typedef struct {
    Channel channel;
    State state;
    unsigned number;
    bool is_writing, is_close_read;
    uint64_t began;
    char key[25];
    Buffer head;   /* the answer to the handshake, as long as it is not complete */
    Buffer output; /* what the socket had no room for; nothing new is built meanwhile */
    uint64_t due, sent, received;
    Times times;

    /* The frame that is coming in. */
    uint8_t header[MAX_HEADER_SIZE], control[MAX_CONTROL_SIZE];
    size_t header_size;
    Frame frame;
    uint64_t left;
    bool is_in_frame;

    /* The message that is coming in, and what it should be. */
    bool is_in_message, is_compressed, is_compared;
    Payload expected;
    uint64_t offset;
    Inflater *inflater;
    unsigned inflated_count;
} Conn;

static int epoll, timer = -1;
static SSL_CTX *tls_context;
static struct addrinfo *server;
static Conn *conns, **unopened;
static unsigned unopened_count, opening_count, open_count;
/* is_sending: new messages go out. is_leaving: all is measured, and what goes wrong now counts no longer. */
static bool is_sending, is_leaving;
static uint64_t progressed_at, received_at;

/* What was negotiated with the first connection; it must be the same with all. */
static char extension[256];
static bool is_negotiated, keeps_window;

static struct {
    uint64_t round_count, began;
    unsigned delivered_count;
} broadcast;

static void push_time(Times *times, uint64_t time)
{
    if (times->count == times->room) {
        unsigned room = times->room ? 2 * times->room : 1;
        uint64_t *grown = malloc(room * sizeof *grown);
        if (!grown)
            refuse("no memory for %u messages in flight", room);
        for (unsigned place = 0; place < times->count; place++)
            grown[place] = times->times[(times->first + place) & (times->room - 1)];
        free(times->times);
        *times = (Times){grown, 0, times->count, room};
    }
    times->times[(times->first + times->count++) & (times->room - 1)] = time;
}

static uint64_t pop_time(Times *times)
{
    uint64_t time = times->times[times->first];

    times->first = (times->first + 1) & (times->room - 1);
    times->count--;
    return time;
}

static Inflater *spare_inflaters;

static Inflater *borrow_inflater(void)
{
    Inflater *inflater = spare_inflaters;

    if (inflater) {
        spare_inflaters = inflater->next;
        return inflater;
    }
    inflater = calloc(1, sizeof *inflater);
    if (!inflater || inflateInit2(&inflater->stream, -15) != Z_OK)
        refuse("no memory to inflate replies");
    return inflater;
}

static void return_inflater(Conn *conn)
{
    if (!conn->inflater)
        return;
    inflateReset(&conn->inflater->stream);
    conn->inflater->next = spare_inflaters;
    spare_inflaters = conn->inflater;
    conn->inflater = NULL;
}

static void drop(Conn *conn)
{
    opening_count -= conn->state == SECURING || conn->state == UPGRADING;
    open_count -= conn->state == OPEN;
    channel_close(&conn->channel);
    buffer_free(&conn->head);
    buffer_free(&conn->output);
    return_inflater(conn);
    free(conn->times.times);
    *conn = (Conn){.number = conn->number};
    if (options.mode == CONNECT)
        unopened[unopened_count++] = conn;
}

static void __attribute__((format(printf, 2, 3))) fail(Conn *conn, const char *format, ...)
{
    char reason[512];
    va_list values;

    va_start(values, format);
    vsnprintf(reason, sizeof reason, format, values);
    va_end(values);
    if (!is_leaving)
        report_error("connection %u: %s", conn->number, reason);
    drop(conn);
}

/* Sending */

static void wait_for(Conn *conn, bool is_writing)
{
    struct epoll_event event = {.events = EPOLLIN | (is_writing ? EPOLLOUT : 0), .data.ptr = conn};

    if (conn->is_writing != is_writing)
        epoll_ctl(epoll, EPOLL_CTL_MOD, conn->channel.fd, &event);
    conn->is_writing = is_writing;
}

/* Write octets, or as many as there is room for; the connection has failed when this returns false. */
static bool transmit(Conn *conn, const uint8_t *octets, size_t size)
{
    int result = channel_send(&conn->channel, &conn->output, octets, size);

    if (result == BROKEN) {
        fail(conn, "writing failed: %s", strerror(errno));
        return false;
    }
    wait_for(conn, result == WOULD_BLOCK);
    return true;
}

static void append_masked(Buffer *buffer, uint8_t first, const uint8_t *payload, size_t size)
{
    uint32_t key = (uint32_t)make_random();
    uint8_t *target = buffer_reserve(buffer, MAX_HEADER_SIZE + size);
    size_t header_size = write_header(target, first, size, &key);

    mask(target + header_size, payload, size, key);
    buffer->end += header_size + size;
}

static bool transmit_control(Conn *conn, int opcode, const uint8_t *payload, size_t size)
{
    Buffer frame = {0};
    bool is_sent;

    append_masked(&frame, (uint8_t)(FIN | opcode), payload, size);
    is_sent = transmit(conn, frame.octets, frame.end);
    buffer_free(&frame);
    return is_sent;
}

static unsigned choose_payload(unsigned connection, uint64_t message)
{
    return (connection + (unsigned)message) % PAYLOAD_COUNT;
}

static void append_message(Conn *conn, Buffer *batch)
{
    unsigned place = choose_payload(conn->number, conn->sent++);
    uint8_t first = (uint8_t)(FIN | options.opcode | (*extension ? RSV1 : 0));
    const Payload *payload = *extension ? &compressed[place] : &payloads[place];

    append_masked(batch, first, payload->octets, payload->size);
}

/* Append what is answered by one reply (of each connection, with broadcast). */
static void append_due(Conn *conn, Buffer *batch, uint64_t now)
{
    for (int count = options.mode == FAN_IN ? BURST : 1; count; count--)
        append_message(conn, batch);
    if (options.mode == FAN_IN)
        append_masked(batch, FIN | TEXT, (const uint8_t *)"count?", 6);
    if (options.mode == BROADCAST) {
        broadcast.round_count++;
        broadcast.began = now;
    } else if (options.rate == 0) {
        push_time(&conn->times, now);
    }
    conn->due--;
}

/* Send what is due, a batch at a time. */
static void pump(Conn *conn)
{
    static Buffer batch;

    while (conn->due && conn->state == OPEN && !buffer_size(&conn->output)) {
        uint64_t now = read_clock();
        for (batch.end = 0; conn->due && batch.end < BATCH_SIZE;)
            append_due(conn, &batch, now);
        transmit(conn, batch.octets, batch.end);
    }
}

static void begin_closing(Conn *conn)
{
    static const uint8_t code[2] = {1000 >> 8, 1000 & 255};

    open_count--;
    conn->state = CLOSING;
    transmit_control(conn, CLOSE, code, sizeof code);
}

/* Replies */

static void count_messages(unsigned count, uint64_t began)
{
    window.messages += count;
    count_latency(received_at - began);
}

static void count_delivery(void)
{
    count_messages(1, broadcast.began);
    if (++broadcast.delivered_count < options.connections)
        return;
    broadcast.delivered_count = 0;
    conns[0].due += is_sending;
    pump(&conns[0]);
}

static void take_reply(Conn *conn)
{
    uint64_t began;

    conn->received++;
    window.replies++;
    progressed_at = received_at;
    if (options.mode == BROADCAST) {
        count_delivery();
        return;
    }
    began = pop_time(&conn->times);
    if (options.mode == CONNECT) {
        begin_closing(conn);
        return;
    }
    count_messages(options.mode == FAN_IN ? BURST : 1, began);
    conn->due += is_sending && options.mode != IDLE && options.rate == 0;
}

static bool is_awaiting_reply(const Conn *conn)
{
    return options.mode == BROADCAST ? conn->received < broadcast.round_count : conn->times.count > 0;
}

static bool begin_message(Conn *conn)
{
    int opcode = conn->frame.first & 15, expected = options.mode == FAN_IN ? TEXT : options.opcode;

    if (!is_awaiting_reply(conn)) {
        fail(conn, "a message came that nobody waits for");
        return false;
    }
    if (opcode != expected) {
        fail(conn, "a reply has the opcode %d instead of %d", opcode, expected);
        return false;
    }
    conn->is_in_message = true;
    conn->offset = 0;
    conn->expected = options.mode == FAN_IN
                         ? counted
                         : payloads[choose_payload(options.mode == BROADCAST ? 0 : conn->number, conn->received)];
    conn->is_compared = conn->expected.size <= ALWAYS_CHECKED_SIZE || conn->received % CHECKED_SHARE == 0;
    conn->is_compressed = conn->frame.first & RSV1;
    if (conn->is_compressed && !conn->inflater &&
        (conn->inflated_count < INFLATED_COUNT || (!keeps_window && conn->received % CHECKED_SHARE == 0)))
        conn->inflater = borrow_inflater();
    return true;
}

/* Compare octets of a reply as they are before compression; false when the connection has failed. */
static bool compare(Conn *conn, const uint8_t *octets, size_t size)
{
    if (size > conn->expected.size - conn->offset) {
        fail(conn, "a reply is longer than the %zu octets expected", conn->expected.size);
        return false;
    }
    if (conn->is_compared && memcmp(octets, conn->expected.octets + conn->offset, size) != 0) {
        fail(conn, "a reply has other content than expected");
        return false;
    }
    conn->offset += size;
    return true;
}

static bool inflate_and_compare(Conn *conn, const uint8_t *octets, size_t size)
{
    static uint8_t inflated[65536];
    z_stream *stream = &conn->inflater->stream;
    int result;

    stream->next_in = (uint8_t *)octets;
    stream->avail_in = (uInt)size;
    do {
        stream->next_out = inflated;
        stream->avail_out = sizeof inflated;
        result = inflate(stream, Z_SYNC_FLUSH);
        if (result == Z_STREAM_END)
            inflateReset(stream);
        else if (result != Z_OK && result != Z_BUF_ERROR) {
            fail(conn, "a reply cannot be inflated");
            return false;
        }
        if (!compare(conn, inflated, sizeof inflated - stream->avail_out))
            return false;
    } while (!stream->avail_out || (stream->avail_in && result != Z_BUF_ERROR));
    return true;
}

/* False when the connection has failed. */
static bool end_inflating(Conn *conn)
{
    static const uint8_t tail[4] = {0, 0, 0xFF, 0xFF};

    if (!inflate_and_compare(conn, tail, sizeof tail))
        return false;
    if (++conn->inflated_count >= INFLATED_COUNT || !keeps_window)
        return_inflater(conn);
    return true;
}

static void end_message(Conn *conn)
{
    bool is_known = !conn->is_compressed || conn->inflater;

    conn->is_in_message = false;
    if (conn->inflater && conn->is_compressed && !end_inflating(conn))
        return;
    if (is_known && conn->offset != conn->expected.size)
        fail(conn, "a reply has %zu octets instead of %zu", (size_t)conn->offset, conn->expected.size);
    else
        take_reply(conn);
}

/* Frames */

static void take_close(Conn *conn)
{
    int code = conn->frame.size < 2 ? 1005 : conn->control[0] << 8 | conn->control[1];

    if (conn->state == CLOSING)
        conn->is_close_read = true;
    else
        fail(conn, "the server closed with %d", code);
}

static void end_frame(Conn *conn)
{
    int opcode = conn->frame.first & 15;

    conn->is_in_frame = false;
    if (opcode == CLOSE) {
        take_close(conn);
    } else if (opcode == PING) {
        transmit_control(conn, PONG, conn->control, conn->frame.size);
    } else if (opcode != PONG) {
        window.reply_octets += conn->frame.header_size + conn->frame.size;
        if (conn->frame.first & FIN)
            end_message(conn);
    }
}

/* Return what is wrong with a frame's header, or nothing. */
static const char *check_header(const Conn *conn)
{
    const Frame *frame = &conn->frame;
    int opcode = frame->first & 15, reserved = frame->first & RSV;
    bool is_control = opcode & 8, may_be_compressed = *extension && !is_control && opcode != CONTINUATION;

    if (frame->is_masked)
        return "a frame is masked";
    if (conn->is_close_read)
        return "a frame came after Close";
    if (opcode > PONG || (opcode > BINARY && !is_control))
        return "an opcode is unknown";
    if (reserved && !(reserved == RSV1 && may_be_compressed))
        return "a reserved bit is set";
    if (is_control)
        return (frame->first & FIN) && frame->size <= MAX_CONTROL_SIZE ? NULL
                                                                       : "a control frame is fragmented or too long";
    if (conn->is_in_message && opcode != CONTINUATION)
        return "a message began within another";
    if (!conn->is_in_message && opcode == CONTINUATION)
        return "a continuation came without a beginning";
    return NULL;
}

static void begin_frame(Conn *conn)
{
    const char *fault = check_header(conn);
    int opcode = conn->frame.first & 15;

    if (fault) {
        fail(conn, "%s (%02x, %zu octets)", fault, conn->frame.first, (size_t)conn->frame.size);
        return;
    }
    conn->is_in_frame = true;
    conn->left = conn->frame.size;
    if ((opcode == TEXT || opcode == BINARY) && !begin_message(conn))
        return;
    if (!conn->left)
        end_frame(conn);
}

/* Take a frame's header, or the part of it that has come; returns how many octets that was. */
static size_t take_header(Conn *conn, const uint8_t *octets, size_t size)
{
    size_t known = conn->header_size, added = size;

    if (!known && parse_header(octets, size, &conn->frame)) {
        added = conn->frame.header_size;
        begin_frame(conn);
        return added;
    }
    if (added > sizeof conn->header - known)
        added = sizeof conn->header - known;
    memcpy(conn->header + known, octets, added);
    conn->header_size += added;
    if (!parse_header(conn->header, conn->header_size, &conn->frame))
        return added;
    conn->header_size = 0;
    added = conn->frame.header_size - known;
    begin_frame(conn);
    return added;
}

static size_t take_payload(Conn *conn, const uint8_t *octets, size_t size)
{
    bool is_going_on = true;

    if (size > conn->left)
        size = conn->left;
    if (conn->frame.first & 8)
        memcpy(conn->control + (conn->frame.size - conn->left), octets, size);
    else if (!conn->is_compressed)
        is_going_on = compare(conn, octets, size);
    else if (conn->inflater)
        is_going_on = inflate_and_compare(conn, octets, size);
    if (!is_going_on)
        return size;
    conn->left -= size;
    if (!conn->left)
        end_frame(conn);
    return size;
}

/* The opening handshake */

/* Return what is wrong with a parameter of the server's answer (RFC 7692, 7.1), or nothing. */
static const char *take_parameter(const char *parameter, int *window_bits)
{
    int bits = 15, end = 0;

    if (strcmp(parameter, "server_no_context_takeover") == 0)
        keeps_window = false;
    else if (strcmp(parameter, "client_no_context_takeover") == 0)
        return NULL;
    else if (sscanf(parameter, "client_max_window_bits=%d%n", &bits, &end) == 1 && !parameter[end])
        *window_bits = bits;
    else if (sscanf(parameter, "server_max_window_bits=%d%n", &bits, &end) != 1 || parameter[end])
        return "the server's extension has an unknown parameter";
    return NULL;
}

/* Take what the server made of the offer, an empty text where it refused it; returns what is wrong, or nothing. */
static const char *take_extension(const char *answer)
{
    char copy[sizeof extension], *rest = copy, *parameter;
    const char *fault = NULL;
    int window_bits = 15;

    if (is_negotiated)
        return strcmp(answer, extension) == 0 ? NULL : "another extension was negotiated than before";
    is_negotiated = true;
    strcpy(extension, answer);
    strcpy(copy, answer);
    if (!*answer)
        return NULL;
    if (!options.is_deflate || strcmp(next_item(&rest, ";"), "permessage-deflate") != 0)
        fault = "the server has an extension that was not offered";
    keeps_window = true;
    while (!fault && (parameter = next_item(&rest, ";")) != NULL)
        fault = take_parameter(parameter, &window_bits);
    if (!fault && !compress_payloads(window_bits))
        fault = "zlib cannot compress with these parameters";
    if (fault)
        *extension = 0;
    return fault;
}

static bool has_item(const char *head, const char *name, const char *expected)
{
    char value[256], *rest = value, *item;

    if (!find_field(head, name, value, sizeof value))
        return false;
    while ((item = next_item(&rest, ",")) != NULL)
        if (strcasecmp(item, expected) == 0)
            return true;
    return false;
}

/* Return what is wrong with the answer to the opening handshake (RFC 6455, 4.1), or nothing. */
static const char *check_answer(const Conn *conn, const char *head)
{
    char accept[ACCEPT_SIZE + 1], value[sizeof extension] = "";

    if (!has_item(head, "Upgrade", "websocket") || !has_item(head, "Connection", "upgrade"))
        return "the answer upgrades to something else";
    compute_accept(conn->key, strlen(conn->key), accept);
    if (!find_field(head, "Sec-WebSocket-Accept", value, sizeof value) || strcmp(value, accept) != 0)
        return "the Sec-WebSocket-Accept does not fit the key";
    if (!find_field(head, "Sec-WebSocket-Extensions", value, sizeof value))
        *value = 0;
    return take_extension(value);
}

/* Take the answer's head, or the part of it that has come; returns how many octets that was. */
static size_t take_head(Conn *conn, const uint8_t *octets, size_t size)
{
    size_t known = conn->head.end, used = size;
    const char *fault = NULL;
    char *head;
    uint8_t *last;

    buffer_append(&conn->head, octets, size);
    last = memmem(conn->head.octets, conn->head.end, "\r\n\r\n", 4);
    if (!last) {
        if (conn->head.end > MAX_HEAD_SIZE)
            fail(conn, "the answer's head does not end");
        return used;
    }
    last[3] = 0;
    used = (size_t)(last + 4 - conn->head.octets) - known;
    head = (char *)conn->head.octets;
    if (strncmp(head, "HTTP/1.1 101 ", 13) != 0)
        fail(conn, "the server refused: %.*s", (int)strcspn(head, "\r"), head);
    else if ((fault = check_answer(conn, head)) != NULL)
        fail(conn, "%s", fault);
    if (conn->state == NOT_OPEN)
        return used;
    buffer_free(&conn->head);
    conn->state = OPEN;
    opening_count--;
    open_count++;
    handshake_count++;
    progressed_at = received_at;
    conn->due = options.mode == CONNECT || options.mode == IDLE;
    return used;
}

static void request_upgrade(Conn *conn)
{
    uint64_t random[2] = {make_random(), make_random()};
    char request[4096];
    int size;

    EVP_EncodeBlock((unsigned char *)conn->key, (unsigned char *)random, sizeof random);
    size = snprintf(request, sizeof request,
                    "GET %s HTTP/1.1\r\nHost: %s:%s\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    "Sec-WebSocket-Key: %s\r\nSec-WebSocket-Version: 13\r\n%s%s%s%s\r\n",
                    options.path, options.host, options.port, conn->key,
                    options.is_deflate ? "Sec-WebSocket-Extensions: permessage-deflate" : "",
                    options.is_deflate && *options.offer ? "; " : "", options.is_deflate ? options.offer : "",
                    options.is_deflate ? "\r\n" : "");
    conn->state = UPGRADING;
    transmit(conn, (uint8_t *)request, (size_t)size);
}

/* Go on with the TLS handshake. */
static void secure(Conn *conn)
{
    int result = channel_secure(&conn->channel);

    if (result == 1)
        request_upgrade(conn);
    else if (result == WOULD_BLOCK)
        wait_for(conn, SSL_want_write(conn->channel.tls));
    else
        fail(conn, "the TLS handshake failed");
}

static void bind_source(const Conn *conn)
{
    const struct sockaddr_in *target = (const struct sockaddr_in *)server->ai_addr;
    struct sockaddr_in source = {.sin_family = AF_INET};
    int on = 1;

    if (server->ai_family != AF_INET || ntohl(target->sin_addr.s_addr) >> 24 != IN_LOOPBACKNET)
        return;
    source.sin_addr.s_addr = htonl(INADDR_LOOPBACK + conn->number % SOURCE_COUNT);
    /* The port is chosen when the whole address pair is known. */
    setsockopt(conn->channel.fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &on, sizeof on);
    bind(conn->channel.fd, (struct sockaddr *)&source, sizeof source);
}

static void open_connection(Conn *conn)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = conn};
    int fd = socket(server->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0), on = 1;

    if (fd < 0)
        refuse("no socket: %s", strerror(errno));
    opening_count++;
    conn->state = SECURING;
    conn->began = read_clock();
    conn->channel.fd = fd;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    bind_source(conn);
    if (connect(fd, server->ai_addr, server->ai_addrlen) != 0 && errno != EINPROGRESS) {
        fail(conn, "connecting failed: %s", strerror(errno));
        return;
    }
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    if (!tls_context) {
        request_upgrade(conn);
        return;
    }
    conn->channel.tls = SSL_new(tls_context);
    SSL_set_fd(conn->channel.tls, fd);
    SSL_set_connect_state(conn->channel.tls);
    secure(conn);
}

static void open_more(void)
{
    unsigned most = options.mode == CONNECT ? options.connections : MAX_OPENING;

    /* One that fails at once is unopened again, so no more than there are now. */
    for (unsigned left = unopened_count; left && opening_count < most; left--)
        open_connection(unopened[--unopened_count]);
}

/* Events */

static void take_end(Conn *conn, bool is_reset)
{
    /* A reset is an end, too, where the server has said all. */
    if (conn->state != CLOSING || !conn->is_close_read) {
        fail(conn, "the connection ended: %s", is_reset ? strerror(errno) : "no Close came before");
        return;
    }
    if (options.mode == CONNECT) {
        count_messages(1, conn->began);
        progressed_at = received_at;
    }
    drop(conn);
}

static void receive(Conn *conn)
{
    static uint8_t inbox[INBOX_SIZE];
    ssize_t moved;

    do {
        size_t at = 0;
        moved = channel_read(&conn->channel, inbox, sizeof inbox);
        received_at = read_clock();
        if (moved == WOULD_BLOCK)
            break;
        if (moved <= 0) {
            take_end(conn, moved == BROKEN);
            return;
        }
        if (conn->state == UPGRADING)
            at = take_head(conn, inbox, (size_t)moved);
        while (at < (size_t)moved && conn->state >= OPEN)
            at += conn->is_in_frame ? take_payload(conn, inbox + at, (size_t)moved - at)
                                    : take_header(conn, inbox + at, (size_t)moved - at);
    } while ((moved == sizeof inbox || channel_has_ended(&conn->channel)) && conn->state != NOT_OPEN);
    pump(conn);
}

static void advance(Conn *conn, uint32_t events)
{
    /* It may have failed since the events were collected. */
    if (conn->state == NOT_OPEN)
        return;
    if (conn->state == SECURING) {
        secure(conn);
        return;
    }
    if (!(events & EPOLLOUT) || transmit(conn, NULL, 0))
        pump(conn);
    if ((events & ~(uint32_t)EPOLLOUT) && conn->state != NOT_OPEN)
        receive(conn);
}

/* The open loop of --rate */

static uint64_t rate_began, rate_count;

static uint64_t compute_due_time(void)
{
    return rate_began + (uint64_t)((double)rate_count / options.rate * SECOND);
}

/* Send what has become due, to each connection in turn, and set the timer for what comes next. */
static void send_at_rate(void)
{
    struct itimerspec next = {0};
    uint64_t expirations, due, now = read_clock();

    if (read(timer, &expirations, sizeof expirations) < 0 && errno != EAGAIN)
        refuse("the timer failed: %s", strerror(errno));
    /* Not too many at once, or replies would wait where more is due than can be sent. */
    for (int left = EVENT_COUNT; left && is_sending && (due = compute_due_time()) <= now; left--, rate_count++) {
        Conn *conn = &conns[rate_count % options.connections];
        if (conn->state != OPEN)
            continue;
        push_time(&conn->times, due);
        conn->due++;
        pump(conn);
    }
    due = is_sending ? compute_due_time() : 0;
    next.it_value.tv_sec = (time_t)(due / SECOND);
    next.it_value.tv_nsec = (long)(due % SECOND);
    timerfd_settime(timer, TFD_TIMER_ABSTIME, &next, NULL);
}

/* What is due and could not be sent is given up. */
static void end_rate(void)
{
    for (unsigned number = 0; number < options.connections; number++) {
        conns[number].times.count -= (unsigned)conns[number].due;
        conns[number].due = 0;
    }
}

static void begin_rate(void)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};

    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    epoll_ctl(epoll, EPOLL_CTL_ADD, timer, &event);
    /* Else the kernel lets a timer wait for 50 microseconds, for company. */
    prctl(PR_SET_TIMERSLACK, 1);
    rate_began = read_clock();
    send_at_rate();
}

/* The run */

static bool is_busy(const Conn *conn)
{
    if (conn->state == OPEN)
        return conn->due || conn->is_in_frame || is_awaiting_reply(conn);
    return conn->state != NOT_OPEN;
}

static bool is_opened(void)
{
    return !unopened_count && !opening_count;
}

static bool is_quiet(void)
{
    if (unopened_count && options.mode != CONNECT)
        return false;
    for (unsigned number = 0; number < options.connections; number++)
        if (is_busy(&conns[number]))
            return false;
    return true;
}

/* Nothing more can happen: all connections have failed, or one without which no round is complete. */
static bool is_over(void)
{
    return options.mode != CONNECT && open_count < (options.mode == BROADCAST ? options.connections : 1);
}

/* Handle events until a condition holds or a time has come; returns whether the condition holds. */
static bool run(bool (*is_done)(void), uint64_t end)
{
    struct epoll_event events[EVENT_COUNT];
    uint64_t now, left;
    int ready;

    for (;;) {
        if (is_sending)
            open_more();
        if (is_done())
            return true;
        if ((now = read_clock()) >= end)
            return false;
        left = (end - now + 999999) / 1000000;
        ready = epoll_wait(epoll, events, EVENT_COUNT, left < 1000 ? (int)left : 1000);
        for (int place = 0; place < ready; place++) {
            if (events[place].data.ptr)
                advance(events[place].data.ptr, events[place].events);
            else
                send_at_rate();
        }
    }
}

/* The same, but for as long as something moves; connections for which nothing does have failed. */
static void run_to_end(bool (*is_done)(void))
{
    uint64_t patience = (uint64_t)(options.timeout * (double)SECOND);

    progressed_at = read_clock();
    while (!run(is_done, progressed_at + patience)) {
        if (read_clock() < progressed_at + patience)
            continue;
        unopened_count = 0;
        for (unsigned number = 0; number < options.connections; number++)
            if (is_busy(&conns[number]))
                fail(&conns[number], "nothing came for %g seconds", options.timeout);
    }
}

static void start_messages(void)
{
    if (options.mode == BROADCAST)
        conns[0].due = 1;
    for (unsigned number = 0; number < options.connections; number++) {
        Conn *conn = &conns[number];
        if (options.mode != BROADCAST && options.rate == 0)
            conn->due = options.in_flight;
        pump(conn);
    }
    if (options.rate > 0)
        begin_rate();
}

/* The modes in which messages are sent for a time. */
static void measure_messages(void)
{
    if (options.mode != CONNECT) {
        run_to_end(is_opened);
        /* A server may answer an upgrade request before it counts the connection among those that get a broadcast. */
        if (options.mode == BROADCAST)
            run(is_over, read_clock() + SETTLE);
        if (!is_over())
            start_messages();
    }
    run(is_over, read_clock() + (uint64_t)(options.warm_up * (double)SECOND));
    begin_window();
    run(is_over, window.began + (uint64_t)(options.seconds * (double)SECOND));
    end_window();
    is_sending = false;
    if (options.rate > 0)
        end_rate();
    run_to_end(is_quiet);
}

/* Return the octets of memory for each connection; the window is the time in which all open and have one echo. */
static double measure_memory(void)
{
    double before = read_memory();

    begin_window();
    run_to_end(is_quiet);
    end_window();
    is_sending = false;
    run(is_over, read_clock() + SETTLE);
    return (read_memory() - before) / options.connections;
}

static void close_all(void)
{
    is_leaving = true;
    for (unsigned number = 0; number < options.connections; number++)
        if (conns[number].state == OPEN)
            begin_closing(&conns[number]);
    run(is_quiet, read_clock() + CLOSING_TIME);
}

static void print_number(const char *name, bool is_known, double number)
{
    if (is_known)
        printf(", \"%s\": %.10g", name, number);
    else
        printf(", \"%s\": null", name);
}

static void report(double memory)
{
    double elapsed = (double)(window.ended - window.began), messages = (double)window.messages;
    bool is_server_known = options.pid_count > 0;

    printf("{\"mode\": \"%s\", \"connections\": %u, \"in_flight\": %u, \"size\": %zu", mode_names[options.mode],
           options.connections, options.in_flight, options.size);
    print_number("seconds", true, elapsed / SECOND);
    print_number("messages", true, messages);
    print_number("rate", true, messages * SECOND / elapsed);
    print_number("errors", true, error_count);
    print_number("server_us", is_server_known && messages > 0, (double)window.server_cpu / 1000 / messages);
    print_number("server_load", is_server_known, (double)window.server_cpu / elapsed);
    print_number("load_load", true, (double)window.own_cpu / elapsed);
    printf(", \"latency_us\": {\"p50\": %.3f, \"p90\": %.3f, \"p99\": %.3f, \"p999\": %.3f, \"max\": %.3f}",
           find_percentile(0.5), find_percentile(0.9), find_percentile(0.99), find_percentile(0.999),
           (double)window.max_latency / 1000);
    print_number("memory_per_connection", is_server_known && options.mode == IDLE, memory);
    print_number("wire_reply", window.replies > 0, (double)window.reply_octets / (double)window.replies);
    print_number("handshakes", true, handshake_count);
    printf(", \"deflate\": \"%s\"}\n", extension);
}

static void prepare(void)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM};
    int result = getaddrinfo(options.host, options.port, &hints, &server);

    if (result != 0)
        refuse("HOST must be a name or an address of a host, not \"%s\": %s", options.host, gai_strerror(result));
    prepare_payloads();
    conns = calloc(options.connections, sizeof *conns);
    unopened = calloc(options.connections, sizeof *unopened);
    if (!conns || !unopened)
        refuse("no memory for %u connections", options.connections);
    /* The last one is opened first. */
    for (unsigned number = options.connections; number--;) {
        conns[number].number = number;
        unopened[unopened_count++] = &conns[number];
    }
    if (options.is_tls)
        tls_context = make_tls_context(TLS_client_method());
    epoll = epoll_create1(EPOLL_CLOEXEC);
}

int main(int count, char **arguments)
{
    double memory = 0;

    parse_options(count, arguments);
    prepare();
    is_sending = true;
    if (options.mode == IDLE)
        memory = measure_memory();
    else
        measure_messages();
    close_all();
    report(memory);
    return error_count > 0;
}
