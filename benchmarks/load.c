/* The load generator of the benchmarks: WebSocket clients on epoll in one thread, which check every reply.
 *
 *     load [options] HOST PORT PATH
 *
 * It prints one line of JSON with what it measured, and the first errors on standard error. Exit status: 0 when there
 * were no errors, 1 when there were, 2 for options that make no sense. What --mode makes of the connections:
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
enum { PAYLOAD_COUNT = 64, PAYLOAD_STEP = 61, BURST = 16 };
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
    "  --mode echo|connect|idle|broadcast|fan-in   --connections N   --in-flight N   --size OCTETS   --text | --binary\n"
    "  --seconds S   --warm-up S   --rate MESSAGES_PER_SECOND   --timeout S   --tls   --deflate\n"
    "  --deflate-offer PARAMETERS   --pids P[,P...]\n";

static void __attribute__((format(printf, 1, 2), noreturn)) refuse(const char *format, ...)
{
    va_list values;

    va_start(values, format);
    fputs("load: ", stderr);
    vfprintf(stderr, format, values);
    fprintf(stderr, "\n%s", usage);
    exit(2);
}

static double parse_number(const char *name, const char *text, double least, double most)
{
    char *end;
    double number = strtod(text, &end);

    if (end == text || *end || !(number >= least && number <= most))
        refuse("--%s must be a number from %g to %.0f, not \"%s\"", name, least, most, text);
    return number;
}

static long parse_count(const char *name, const char *text, long least, long most)
{
    char *end;
    long number = strtol(text, &end, 10);

    if (end == text || *end || number < least || number > most)
        refuse("--%s must be a whole number from %ld to %ld, not \"%s\"", name, least, most, text);
    return number;
}

static Mode parse_mode(const char *text)
{
    for (int mode = 0; mode_names[mode]; mode++)
        if (strcmp(text, mode_names[mode]) == 0)
            return (Mode)mode;
    refuse("--mode must be echo, connect, idle, broadcast or fan-in, not \"%s\"", text);
}

/* The clock of a process counts all of its threads, those that have ended included. */
static uint64_t read_cpu_clock(pid_t pid)
{
    struct timespec used;
    clockid_t clock;

    if (clock_getcpuclockid(pid, &clock) != 0 || clock_gettime(clock, &used) != 0)
        refuse("--pids must name processes that run: %d does not", (int)pid);
    return (uint64_t)used.tv_sec * SECOND + (uint64_t)used.tv_nsec;
}

static void parse_pids(char *text)
{
    char *item;

    while ((item = next_item(&text, ",")) != NULL) {
        if (options.pid_count == MAX_PIDS)
            refuse("--pids must name at most %d processes", MAX_PIDS);
        options.pids[options.pid_count] = (pid_t)parse_count("pids", item, 1, 1 << 22);
        read_cpu_clock(options.pids[options.pid_count++]);
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
        refuse("--connections %u does not fit into the limit of %llu descriptors (ulimit -Hn)", options.connections,
               (unsigned long long)limit);
}

static void parse_options(int count, char **arguments)
{
    enum { MODE, CONNECTIONS, IN_FLIGHT, SIZE, AS_TEXT, AS_BINARY, SECONDS, WARM_UP, RATE, TIMEOUT, TLS, DEFLATE, OFFER,
           PIDS };
    static const struct option known[] = {
        {"mode", required_argument, NULL, MODE}, {"connections", required_argument, NULL, CONNECTIONS},
        {"in-flight", required_argument, NULL, IN_FLIGHT}, {"size", required_argument, NULL, SIZE},
        {"text", no_argument, NULL, AS_TEXT}, {"binary", no_argument, NULL, AS_BINARY},
        {"seconds", required_argument, NULL, SECONDS}, {"warm-up", required_argument, NULL, WARM_UP},
        {"rate", required_argument, NULL, RATE}, {"timeout", required_argument, NULL, TIMEOUT},
        {"tls", no_argument, NULL, TLS}, {"deflate", no_argument, NULL, DEFLATE},
        {"deflate-offer", required_argument, NULL, OFFER}, {"pids", required_argument, NULL, PIDS}, {0}};
    int option, index;

    while ((option = getopt_long(count, arguments, "", known, &index)) != -1) {
        const char *name = option == '?' ? "" : known[index].name;
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
        case PIDS: parse_pids(optarg); break;
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (count - optind != 3)
        refuse("HOST, PORT and PATH are needed, and nothing else");
    options.host = arguments[optind];
    options.port = arguments[optind + 1];
    options.path = arguments[optind + 2];
    parse_count("PORT" + 0, options.port, 1, 65535);
    if (options.path[0] != '/')
        refuse("PATH must begin with /, not \"%s\"", options.path);
    check_options();
}
