// corral-replay: holds memory and burns CPU along a schedule, and times every chunk of memory that it touches.
//
// `corral replay` starts one for each tool call of a recorded trace (below corral-exec, so that it is born in its leaf) and
// one as the agent's framework. It is C because a Python process would bring its own tens of megabytes and its own pauses.
//
// Schedule, one step a line, in the order of time; '#' begins a comment:
//     AT_USEC BYTES MILLICORES     from this moment on: so much memory resident, so much CPU
//     AT_USEC end                  the last line
// Times count from the moment at which the whole schedule has been read. Memory grows in chunks, every page of which is written; it shrinks with
// MADV_DONTNEED, so that the kernel gets the pages back at once.
//
// --steered: the schedule comes on stdin, and after it lines that move the schedule's clock (an agent that waits for the
// result of a tool does not go on to what it did next):
//     go AT_USEC UNTIL_USEC        the clock shows AT_USEC now; at UNTIL_USEC, what is due then undone, it stands
// When stdin ends, the clock just goes on.
//
// Report (--report FILE), CSV with a heading: at_usec,chunk_bytes,latency_nsec for each chunk touched, written out after
// every step so that a killed process leaves what it measured; the last line, only at a regular end, is
//     # end peak_bytes=N chunks=N late_usec=N cpu_usec=N
// where late_usec is the longest that a step began after its time.
//
// Exit: 0 done, 1 the kernel refused something, 2 wrong usage or schedule.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define NSEC 1000000000LL
#define MAX_STEPS 1000000
#define MAX_BYTES (1ULL << 46)
#define MAX_MILLICORES 256000
#define DEFAULT_CHUNK (2ULL << 20)
// A thread spins its share of each period. Shorter follows a schedule at 50 times the recorded speed (a step is 20 ms
// there); much shorter and the clock's reading becomes the load.
#define PERIOD_NSEC 4000000LL
// Turns of the loop between two readings of the thread's CPU clock (a system call): some 10 us.
#define BETWEEN_READINGS 20000

struct step {
    int64_t at_usec;
    uint64_t bytes;
    uint32_t millicores;
};

struct schedule {
    struct step *steps;
    size_t count;
    int64_t end_usec;
    uint64_t max_bytes;
    uint32_t max_millicores;
};

// Lines of a descriptor, which can be waited for: stdio would hide in its buffer what poll() is asked about.
struct reader {
    int fd;
    size_t from, to;
    bool ended;
    char data[4096];
};

static _Atomic uint32_t wanted_millicores;
static _Atomic bool finished;

static void __attribute__((noreturn, format(printf, 2, 3))) die(int status, const char *format, ...)
{
    va_list list;

    fputs("corral-replay: ", stderr);
    va_start(list, format);
    vfprintf(stderr, format, list);
    va_end(list);
    fputc('\n', stderr);
    exit(status);
}

static int64_t now_nsec(clockid_t clock)
{
    struct timespec at;

    clock_gettime(clock, &at);
    return at.tv_sec * NSEC + at.tv_nsec;
}

static void sleep_until(int64_t nsec)
{
    struct timespec at = {.tv_sec = nsec / NSEC, .tv_nsec = nsec % NSEC};

    while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
        ;
}

// A decimal number without sign that ends at a blank or the end of the line; -1: it is none, or above `most`.
static int64_t number(char **text, uint64_t most)
{
    char *from = *text + strspn(*text, " \t");
    char *end;
    uint64_t value;

    if (*from < '0' || *from > '9')
        return -1;
    errno = 0;
    value = strtoull(from, &end, 10);
    if (errno || value > most || (*end && !strchr(" \t\r\n", *end)))
        return -1;
    *text = end;
    return (int64_t)value;
}

// Whether a byte can be had within `nsec` (negative: however long it takes). False also where there will be none.
static bool has_more(struct reader *reader, int64_t nsec)
{
    struct pollfd wanted = {.fd = reader->fd, .events = POLLIN};
    struct timespec timeout = {.tv_sec = nsec / NSEC, .tv_nsec = nsec % NSEC};
    ssize_t got;

    if (reader->from < reader->to)
        return true;
    if (reader->ended || ppoll(&wanted, 1, nsec < 0 ? NULL : &timeout, NULL) <= 0)
        return false;
    got = read(reader->fd, reader->data, sizeof(reader->data));
    if (got < 0 && errno == EINTR)
        return false;
    if (got < 0)
        die(2, "the schedule cannot be read: %s", strerror(errno));
    reader->ended = !got;
    reader->from = 0;
    reader->to = (size_t)got;
    return got > 0;
}

// The next line without its end, cut at `size`; false: there is none. `whole`: it was not cut.
static bool read_line(struct reader *reader, char *line, size_t size, bool *whole)
{
    size_t length = 0;
    bool any = false;

    *whole = true;
    while (has_more(reader, -1) || !reader->ended) {
        char byte;

        if (reader->from == reader->to)
            continue; // interrupted
        byte = reader->data[reader->from++];
        any = true;
        if (byte == '\n')
            break;
        if (length + 1 < size)
            line[length++] = byte;
        else
            *whole = false;
    }
    line[length] = 0;
    return any;
}

static void read_schedule(const char *name, struct reader *reader, bool steered, struct schedule *schedule)
{
    char line[256];
    size_t room = 0, row = 0;
    bool ended = false, whole;

    schedule->end_usec = -1;
    while (!(steered && ended) && read_line(reader, line, sizeof(line), &whole)) {
        char *text = line;
        int64_t at, bytes, millicores, before;

        row++;
        if (!whole)
            die(2, "%s:%zu: longer than %zu bytes", name, row, sizeof(line) - 1);
        line[strcspn(line, "#\r\n")] = 0;
        text += strspn(text, " \t");
        if (!*text)
            continue;
        if (ended)
            die(2, "%s:%zu: a step after the end", name, row);
        at = number(&text, INT64_MAX / 2000);
        before = schedule->count ? schedule->steps[schedule->count - 1].at_usec : 0;
        if (at < 0 || at < before)
            die(2, "%s:%zu: the time is no number of microseconds at or after the line before", name, row);
        text += strspn(text, " \t");
        if (!strncmp(text, "end", 3) && !text[3 + strspn(text + 3, " \t")]) {
            schedule->end_usec = at;
            ended = true;
            continue;
        }
        bytes = number(&text, MAX_BYTES);
        millicores = bytes < 0 ? -1 : number(&text, MAX_MILLICORES);
        if (millicores < 0 || text[strspn(text, " \t")])
            die(2, "%s:%zu: expected AT_USEC BYTES MILLICORES (at most %llu bytes, %d millicores)", name, row,
                (unsigned long long)MAX_BYTES, MAX_MILLICORES);
        if (schedule->count == MAX_STEPS)
            die(2, "%s:%zu: more than %d steps", name, row, MAX_STEPS);
        if (schedule->count == room) {
            room = room ? room * 2 : 256;
            schedule->steps = realloc(schedule->steps, room * sizeof(*schedule->steps));
            if (!schedule->steps)
                die(1, "no memory for %zu steps", room);
        }
        schedule->steps[schedule->count++] =
            (struct step){.at_usec = at, .bytes = (uint64_t)bytes, .millicores = (uint32_t)millicores};
        if ((uint64_t)bytes > schedule->max_bytes)
            schedule->max_bytes = (uint64_t)bytes;
        if ((uint32_t)millicores > schedule->max_millicores)
            schedule->max_millicores = (uint32_t)millicores;
    }
    if (!ended)
        die(2, "%s: no line 'AT_USEC end'; is the schedule complete?", name);
}

// Thread k takes the share of the load that lies between k and k + 1 cores.
static void *spin(void *argument)
{
    int64_t lower = (int64_t)(intptr_t)argument * 1000;
    int64_t next = now_nsec(CLOCK_MONOTONIC);

    while (!atomic_load_explicit(&finished, memory_order_relaxed)) {
        int64_t share = (int64_t)atomic_load_explicit(&wanted_millicores, memory_order_relaxed) - lower;
        int64_t until, now;

        share = share < 0 ? 0 : share > 1000 ? 1000 : share;
        // CPU time and not wall time: a thread that had to wait for its CPU still does its work.
        until = now_nsec(CLOCK_THREAD_CPUTIME_ID) + PERIOD_NSEC * share / 1000;
        while (share && now_nsec(CLOCK_THREAD_CPUTIME_ID) < until)
            for (volatile int i = 0; i < BETWEEN_READINGS; i++)
                ;
        next += PERIOD_NSEC;
        now = now_nsec(CLOCK_MONOTONIC);
        if (next < now)
            next = now; // frozen, or starved: what was missed is not made up for
        else
            sleep_until(next);
    }
    return NULL;
}

static pthread_t *start_spinners(uint32_t count)
{
    pthread_t *threads = calloc(count ? count : 1, sizeof(*threads));
    pthread_attr_t attributes;

    if (!threads)
        die(1, "no memory for %u threads", count);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 64 * 1024); // their stacks must not count as the trace's memory
    for (uint32_t i = 0; i < count; i++) {
        int error = pthread_create(&threads[i], &attributes, spin, (void *)(intptr_t)i);

        if (error)
            die(1, "thread %u of %u: %s; is the call's limit of processes too low?", i + 1, count, strerror(error));
    }
    pthread_attr_destroy(&attributes);
    return threads;
}

struct holding {
    char *base;
    uint64_t size, peak, chunks, page, chunk;
    FILE *report;
};

static void grow(struct holding *held, uint64_t target, int64_t start)
{
    while (held->size < target) {
        uint64_t length = target - held->size < held->chunk ? target - held->size : held->chunk;
        int64_t before = now_nsec(CLOCK_MONOTONIC), after;

        for (uint64_t at = held->size; at < held->size + length; at += held->page)
            *(volatile char *)(held->base + at) = 1;
        after = now_nsec(CLOCK_MONOTONIC);
        held->size += length;
        held->chunks++;
        if (held->report)
            fprintf(held->report, "%" PRId64 ",%" PRIu64 ",%" PRId64 "\n", (before - start) / 1000, length,
                    after - before);
    }
    if (held->size > held->peak)
        held->peak = held->size;
}

static void shrink(struct holding *held, uint64_t target)
{
    if (held->size > target && madvise(held->base + target, held->size - target, MADV_DONTNEED))
        die(1, "madvise: %s", strerror(errno));
    held->size = target;
}

// Until the schedule's clock, which shows 0 at `start`, shows `at_usec`. Returns the clock's start as it is then.
static int64_t wait_for_clock(int64_t at_usec, int64_t start, struct reader *commands)
{
    static int64_t stands_at = INT64_MAX; // usec
    char line[64], *text;
    bool whole;

    if (!commands) {
        sleep_until(start + at_usec * 1000);
        return start;
    }
    for (;;) {
        bool stands = at_usec >= stands_at;
        int64_t left = start + at_usec * 1000 - now_nsec(CLOCK_MONOTONIC), shows;

        if (!has_more(commands, stands ? -1 : left > 0 ? left : 0)) {
            if (commands->ended) {
                if (stands && start + stands_at * 1000 < now_nsec(CLOCK_MONOTONIC))
                    start = now_nsec(CLOCK_MONOTONIC) - stands_at * 1000;
                stands_at = INT64_MAX;
                sleep_until(start + at_usec * 1000);
                return start;
            }
            if (!stands && now_nsec(CLOCK_MONOTONIC) >= start + at_usec * 1000)
                return start;
            continue;
        }
        if (!read_line(commands, line, sizeof(line), &whole))
            continue;
        text = line + 2;
        shows = strncmp(line, "go ", 3) || !whole ? -1 : number(&text, INT64_MAX / 2000);
        stands_at = shows < 0 ? -1 : number(&text, INT64_MAX / 2000);
        if (stands_at < shows || shows < 0 || *text)
            die(2, "'%s' is no command; expected 'go AT_USEC UNTIL_USEC'", line);
        start = now_nsec(CLOCK_MONOTONIC) - shows * 1000;
    }
}

static void follow(const struct schedule *schedule, struct holding *held, struct reader *commands)
{
    int64_t start = now_nsec(CLOCK_MONOTONIC), late = 0;
    struct rusage usage;

    if (held->report)
        fputs("at_usec,chunk_bytes,latency_nsec\n", held->report);
    for (size_t i = 0; i < schedule->count; i++) {
        const struct step *step = &schedule->steps[i];
        uint64_t target = (step->bytes + held->page - 1) / held->page * held->page;
        int64_t behind;

        start = wait_for_clock(step->at_usec, start, commands);
        behind = now_nsec(CLOCK_MONOTONIC) - start - step->at_usec * 1000;
        if (behind > late)
            late = behind;
        atomic_store(&wanted_millicores, step->millicores);
        if (target > held->size)
            grow(held, target, start);
        else
            shrink(held, target);
        if (held->report)
            fflush(held->report);
    }
    wait_for_clock(schedule->end_usec, start, commands);
    getrusage(RUSAGE_SELF, &usage);
    if (held->report) {
        int64_t cpu = (usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) * 1000000LL + usage.ru_utime.tv_usec +
                      usage.ru_stime.tv_usec;

        fprintf(held->report,
                "# end peak_bytes=%" PRIu64 " chunks=%" PRIu64 " late_usec=%" PRId64 " cpu_usec=%" PRId64 "\n",
                held->peak, held->chunks, late / 1000, cpu);
    }
}

static void __attribute__((noreturn)) usage(int status)
{
    fputs("usage: corral-replay --schedule FILE|- [--report FILE] [--chunk BYTES] [--huge] [--announce] [--steered]\n"
          "Holds memory and burns CPU along a schedule of lines 'AT_USEC BYTES MILLICORES', ended by 'AT_USEC end'.\n"
          "  --report FILE   CSV: at_usec,chunk_bytes,latency_nsec of each chunk touched\n"
          "  --chunk BYTES   touched and timed at once (default 2097152)\n"
          "  --huge          let the kernel use huge pages (default: small pages only)\n"
          "  --announce      print 'ready' before the schedule is read: its clock starts when it has been\n"
          "  --steered       with --schedule -: after its end, lines 'go AT_USEC UNTIL_USEC' move its clock\n",
          status ? stderr : stdout);
    exit(status);
}

int main(int argc, char **argv)
{
    const char *schedule_name = NULL, *report_name = NULL;
    struct schedule schedule = {0};
    struct holding held = {.page = (uint64_t)sysconf(_SC_PAGESIZE), .chunk = DEFAULT_CHUNK};
    struct reader reader = {.fd = STDIN_FILENO};
    bool huge = false, announce = false, steered = false;
    uint32_t spinners;
    pthread_t *threads;

    for (int i = 1; i < argc; i++) {
        bool more = i + 1 < argc;

        if (!strcmp(argv[i], "--help")) {
            usage(0);
        } else if (!strcmp(argv[i], "--huge")) {
            huge = true;
        } else if (!strcmp(argv[i], "--announce")) {
            announce = true;
        } else if (!strcmp(argv[i], "--steered")) {
            steered = true;
        } else if (!strcmp(argv[i], "--schedule") && more) {
            schedule_name = argv[++i];
        } else if (!strcmp(argv[i], "--report") && more) {
            report_name = argv[++i];
        } else if (!strcmp(argv[i], "--chunk") && more) {
            char *text = argv[++i];
            int64_t chunk = number(&text, 1ULL << 30);

            if (chunk < (int64_t)held.page || chunk % (int64_t)held.page || *text)
                die(2, "--chunk %s: give a multiple of the page size (%" PRIu64 "), at most 1 GiB", argv[i], held.page);
            held.chunk = (uint64_t)chunk;
        } else {
            usage(2);
        }
    }
    if (!schedule_name || (steered && strcmp(schedule_name, "-")))
        usage(2);
    if (announce && (puts("ready") < 0 || fflush(stdout)))
        die(1, "stdout: %s", strerror(errno));
    if (strcmp(schedule_name, "-")) {
        reader.fd = open(schedule_name, O_RDONLY | O_CLOEXEC);
        if (reader.fd < 0)
            die(2, "%s: %s; name a readable schedule", schedule_name, strerror(errno));
    }
    read_schedule(schedule_name, &reader, steered, &schedule);
    if (!steered && reader.fd != STDIN_FILENO)
        close(reader.fd);
    if (report_name) {
        held.report = fopen(report_name, "we");
        if (!held.report)
            die(1, "%s: %s; name a writable file", report_name, strerror(errno));
    }
    if (schedule.max_bytes) {
        // Only the address range: not a page is taken before the schedule says so.
        held.base = mmap(NULL, schedule.max_bytes + held.page, PROT_READ | PROT_WRITE,
                         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (held.base == MAP_FAILED)
            die(1, "mmap of %" PRIu64 " bytes: %s", schedule.max_bytes, strerror(errno));
        // Kernels without huge pages say EINVAL to both, and then there is nothing to choose.
        if (madvise(held.base, schedule.max_bytes + held.page, huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE) &&
            errno != EINVAL)
            die(1, "madvise: %s", strerror(errno));
    }
    spinners = (schedule.max_millicores + 999) / 1000;
    threads = start_spinners(spinners);
    follow(&schedule, &held, steered ? &reader : NULL);
    atomic_store(&finished, true);
    for (uint32_t i = 0; i < spinners; i++)
        pthread_join(threads[i], NULL);
    free(threads);
    free(schedule.steps);
    if (held.report && fclose(held.report))
        die(1, "%s: %s", report_name, strerror(errno));
    return 0;
}
