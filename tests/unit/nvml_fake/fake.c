// A stand-in for libnvidia-ml.so.1, loaded by NVIDIA's own Python bindings. What it answers is in the file that
// CORRAL_FAKE_NVML names, read anew at each call: a test changes the file to let time pass, or a GPU vanish.
//
// One fact a line; unknown words end the process, so that a misspelt scenario cannot pass for a quiet GPU:
//   init CODE | driver VERSION | count N
//   dev I uuid TEXT | name TEXT | mem TOTAL USED | util SM MEM | power MILLIWATTS | energy MILLIJOULES | temp C
//   dev I mig 0|1 | gpm 0|1 | limit MILLIWATTS
//   dev I proc PID BYTES GI CI | gproc PID BYTES GI CI | share TIME PID SM MEM
//   dev I slice INDEX UUID GI CI TOTAL USED SMS       a MIG instance
//   dev I switches ENGINE REQUESTS CYCLES ACTIVE       counters since boot, of one GR engine
//   error I|* FUNCTION|* CODE                          what FUNCTION answers for device I
//   event I XID GI CI                                  delivered once each, in the order of the file
//
// -DOLD_DRIVER leaves out the functions that came with R535 and later, as an old driver's library does.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define OK 0
#define NOT_SUPPORTED 3
#define NOT_FOUND 6
#define INSUFFICIENT_SIZE 7
#define TIMEOUT 10
#define GPU_LOST 15
#define MAX_DEVICES 8
#define MAX_LIST 32
#define ENGINES 8
#define FIRST_METRIC 170

typedef unsigned long long u64;
typedef struct { unsigned pid; u64 bytes; unsigned gi, ci; } process_t;  // nvmlProcessInfo_t
typedef struct { u64 time; unsigned pid, sm, mem; } share_t;
typedef struct { unsigned index, gi, ci, sms; char uuid[96]; u64 total, used; } slice_t;
typedef struct { double requests, cycles, active; int present; } switches_t;
typedef struct {
    int tag;  // tells a device from a slice, by its first word
    char uuid[96], name[96];
    u64 total, used, energy;
    unsigned sm, mem, power, limit, temp, mig, gpm;
    process_t procs[MAX_LIST], gprocs[MAX_LIST];
    share_t shares[MAX_LIST];
    slice_t slices[MAX_LIST];
    unsigned nprocs, ngprocs, nshares, nslices;
    switches_t switches[ENGINES];
} device_t;
typedef struct { int device; char function[64]; int code; } error_t;
typedef struct { unsigned device, gi, ci; u64 xid; } event_t;

static device_t devices[MAX_DEVICES];
static struct { int tag, device, slot; } slice_handles[MAX_DEVICES][MAX_LIST];
static error_t errors[MAX_LIST];
static event_t events[MAX_LIST];
static unsigned count, nerrors, nevents, delivered;
static int init_code, live;
static char driver[80];
// The table is filled by whichever thread calls; the event thread waits outside of it.
static volatile int busy;

static void enter(void) { while (__sync_lock_test_and_set(&busy, 1)) ; }
static void leave(void) { __sync_lock_release(&busy); }

static void bad(const char *line) {
    fprintf(stderr, "fake NVML: cannot read this line of the scenario: %s\n", line);
    abort();
}

static void device_line(const char *line, unsigned i, const char *word, const char *rest) {
    device_t *d = &devices[i];
    process_t *p;
    if (!strcmp(word, "uuid")) { if (sscanf(rest, "%95s", d->uuid) != 1) bad(line); }
    else if (!strcmp(word, "name")) { if (sscanf(rest, " %95[^\n]", d->name) != 1) bad(line); }
    else if (!strcmp(word, "mem")) { if (sscanf(rest, "%llu %llu", &d->total, &d->used) != 2) bad(line); }
    else if (!strcmp(word, "util")) { if (sscanf(rest, "%u %u", &d->sm, &d->mem) != 2) bad(line); }
    else if (!strcmp(word, "power")) { if (sscanf(rest, "%u", &d->power) != 1) bad(line); }
    else if (!strcmp(word, "limit")) { if (sscanf(rest, "%u", &d->limit) != 1) bad(line); }
    else if (!strcmp(word, "energy")) { if (sscanf(rest, "%llu", &d->energy) != 1) bad(line); }
    else if (!strcmp(word, "temp")) { if (sscanf(rest, "%u", &d->temp) != 1) bad(line); }
    else if (!strcmp(word, "mig")) { if (sscanf(rest, "%u", &d->mig) != 1) bad(line); }
    else if (!strcmp(word, "gpm")) { if (sscanf(rest, "%u", &d->gpm) != 1) bad(line); }
    else if (!strcmp(word, "proc") || !strcmp(word, "gproc")) {
        int graphics = word[0] == 'g';
        if ((graphics ? d->ngprocs : d->nprocs) >= MAX_LIST) bad(line);
        p = graphics ? &d->gprocs[d->ngprocs++] : &d->procs[d->nprocs++];
        if (sscanf(rest, "%u %llu %u %u", &p->pid, &p->bytes, &p->gi, &p->ci) != 4) bad(line);
    } else if (!strcmp(word, "share")) {
        if (d->nshares >= MAX_LIST) bad(line);
        share_t *s = &d->shares[d->nshares++];
        if (sscanf(rest, "%llu %u %u %u", &s->time, &s->pid, &s->sm, &s->mem) != 4) bad(line);
    } else if (!strcmp(word, "slice")) {
        if (d->nslices >= MAX_LIST) bad(line);
        slice_t *s = &d->slices[d->nslices++];
        if (sscanf(rest, "%u %95s %u %u %llu %llu %u", &s->index, s->uuid, &s->gi, &s->ci, &s->total, &s->used,
                   &s->sms) != 7) bad(line);
    } else if (!strcmp(word, "switches")) {
        unsigned engine;
        switches_t s = {.present = 1};
        if (sscanf(rest, "%u %lf %lf %lf", &engine, &s.requests, &s.cycles, &s.active) != 4 || engine >= ENGINES) bad(line);
        d->switches[engine] = s;
    } else bad(line);
}

static void scenario(void) {
    static int parsed;
    if (parsed && getenv("CORRAL_FAKE_NVML_STEADY")) return;  // for benchmarks: reading the file is not what a driver does
    parsed = 1;
    const char *path = getenv("CORRAL_FAKE_NVML");
    FILE *file = path ? fopen(path, "re") : NULL;
    char line[512], word[64], first[16];
    int at;
    if (!file) { fprintf(stderr, "fake NVML: CORRAL_FAKE_NVML names no readable file\n"); abort(); }
    memset(devices, 0, sizeof devices);
    for (int i = 0; i < MAX_DEVICES; i++) devices[i].tag = 1;
    count = nerrors = nevents = 0;
    init_code = 0;
    strcpy(driver, "580.0");
    while (fgets(line, sizeof line, file)) {
        unsigned i;
        if (sscanf(line, "%63s", word) != 1 || word[0] == '#') continue;
        if (!strcmp(word, "init")) { if (sscanf(line, "init %d", &init_code) != 1) bad(line); }
        else if (!strcmp(word, "driver")) { if (sscanf(line, "driver %79s", driver) != 1) bad(line); }
        else if (!strcmp(word, "count")) { if (sscanf(line, "count %u", &count) != 1 || count > MAX_DEVICES) bad(line); }
        else if (!strcmp(word, "dev")) {
            if (sscanf(line, "dev %u %63s %n", &i, word, &at) != 2 || i >= MAX_DEVICES) bad(line);
            device_line(line, i, word, line + at);
        } else if (!strcmp(word, "error")) {
            if (nerrors >= MAX_LIST) bad(line);
            error_t *e = &errors[nerrors++];
            if (sscanf(line, "error %15s %63s %d", first, e->function, &e->code) != 3) bad(line);
            e->device = first[0] == '*' ? -1 : atoi(first);
        } else if (!strcmp(word, "event")) {
            if (nevents >= MAX_LIST) bad(line);
            event_t *e = &events[nevents++];
            if (sscanf(line, "event %u %llu %u %u", &e->device, &e->xid, &e->gi, &e->ci) != 4) bad(line);
        } else bad(line);
    }
    fclose(file);
}

static int error_of(int device, const char *function) {
    for (unsigned i = 0; i < nerrors; i++)
        if ((errors[i].device == -1 || errors[i].device == device) &&
            (!strcmp(errors[i].function, "*") || !strcmp(errors[i].function, function)))
            return errors[i].code;
    return OK;
}

static int index_of(void *handle) {
    char *p = handle;
    if (p >= (char *)devices && p < (char *)(devices + MAX_DEVICES)) return (int)((device_t *)handle - devices);
    return ((int *)handle)[1];
}
static slice_t *slice_of(void *handle) {
    char *p = handle;
    if (p < (char *)slice_handles || p >= (char *)(slice_handles + MAX_DEVICES)) return NULL;
    return &devices[((int *)handle)[1]].slices[((int *)handle)[2]];
}

// Every call: read the scenario, find the device, answer its error if it has one.
#define CALL(handle)                                                       \
    enter();                                                               \
    scenario();                                                            \
    if (!live) { leave(); return 1; }                                      \
    int i = (handle) ? index_of(handle) : -1;                              \
    int code = error_of(i, __func__);                                      \
    device_t *d = i >= 0 ? &devices[i] : NULL;                             \
    slice_t *slice = (handle) ? slice_of(handle) : NULL;                   \
    (void)d; (void)slice;                                                  \
    if (!code && i >= (int)count) code = GPU_LOST;                         \
    if (code) { leave(); return code; }
#define DONE(value) do { int done_ = (value); leave(); return done_; } while (0)

int nvmlInitWithFlags(unsigned flags) {
    (void)flags;
    enter();
    scenario();
    if (init_code) DONE(init_code);
    live++;
    DONE(OK);
}
int nvmlShutdown(void) {
    enter();
    int was = live;
    if (live) live--;
    DONE(was ? OK : 1);
}
const char *nvmlErrorString(int code) { (void)code; return "fake error"; }

int nvmlSystemGetDriverVersion(char *out, unsigned size) {
    CALL(NULL);
    snprintf(out, size, "%s", driver);
    DONE(OK);
}
int nvmlDeviceGetCount_v2(unsigned *out) {
    CALL(NULL);
    *out = count;
    DONE(OK);
}
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **out) {
    enter();
    scenario();
    if (!live) DONE(1);
    if (index >= count) DONE(2);
    int code = error_of((int)index, __func__);
    *out = &devices[index];
    DONE(code);
}
int nvmlDeviceGetUUID(void *h, char *out, unsigned size) {
    CALL(h);
    snprintf(out, size, "%s", slice ? slice->uuid : d->uuid);
    DONE(OK);
}
int nvmlDeviceGetName(void *h, char *out, unsigned size) {
    CALL(h);
    snprintf(out, size, "%s", d->name);
    DONE(OK);
}
struct pci { char legacy[16]; unsigned domain, bus, device, id, subsystem; char bus_id[32]; };
int nvmlDeviceGetPciInfo_v3(void *h, struct pci *out) {
    CALL(h);
    memset(out, 0, sizeof *out);
    snprintf(out->bus_id, sizeof out->bus_id, "00000000:%02X:00.0", (unsigned)i + 1);
    DONE(OK);
}
int nvmlDeviceGetCudaComputeCapability(void *h, int *major, int *minor) {
    CALL(h);
    *major = 9;
    *minor = 0;
    DONE(OK);
}
struct memory { u64 total, free, used; };
int nvmlDeviceGetMemoryInfo(void *h, struct memory *out) {
    CALL(h);
    out->total = slice ? slice->total : d->total;
    out->used = slice ? slice->used : d->used;
    out->free = out->total - out->used;
    DONE(OK);
}
int nvmlDeviceGetUtilizationRates(void *h, unsigned out[2]) {
    CALL(h);
    out[0] = d->sm;
    out[1] = d->mem;
    DONE(OK);
}
int nvmlDeviceGetPowerUsage(void *h, unsigned *out) { CALL(h); *out = d->power; DONE(OK); }
int nvmlDeviceGetEnforcedPowerLimit(void *h, unsigned *out) { CALL(h); *out = d->limit; DONE(OK); }
int nvmlDeviceGetTotalEnergyConsumption(void *h, u64 *out) { CALL(h); *out = d->energy; DONE(OK); }
int nvmlDeviceGetTemperature(void *h, int sensor, unsigned *out) { CALL(h); *out = d->temp; (void)sensor; DONE(OK); }

static int list(const process_t *from, unsigned n, unsigned *size, process_t *out) {
    if (n > *size) { *size = n; return INSUFFICIENT_SIZE; }
    if (n) memcpy(out, from, n * sizeof *from);
    *size = n;
    return OK;
}
int nvmlDeviceGetComputeRunningProcesses_v3(void *h, unsigned *n, process_t *out) {
    CALL(h);
    DONE(list(d->procs, d->nprocs, n, out));
}
int nvmlDeviceGetGraphicsRunningProcesses_v3(void *h, unsigned *n, process_t *out) {
    CALL(h);
    DONE(list(d->gprocs, d->ngprocs, n, out));
}
struct sample { unsigned pid; u64 time; unsigned sm, mem, enc, dec; };
int nvmlDeviceGetProcessUtilization(void *h, struct sample *out, unsigned *n, u64 since) {
    CALL(h);
    unsigned found = 0;
    for (unsigned k = 0; k < d->nshares; k++) found += d->shares[k].time > since;
    if (!found) DONE(NOT_FOUND);
    if (!out || *n < found) { *n = found; DONE(INSUFFICIENT_SIZE); }
    *n = 0;
    for (unsigned k = 0; k < d->nshares; k++)
        if (d->shares[k].time > since)
            out[(*n)++] = (struct sample){d->shares[k].pid, d->shares[k].time, d->shares[k].sm, d->shares[k].mem, 0, 0};
    DONE(OK);
}
int nvmlDeviceGetMigMode(void *h, unsigned *current, unsigned *pending) {
    CALL(h);
    *current = *pending = d->mig;
    DONE(OK);
}
int nvmlDeviceGetMaxMigDeviceCount(void *h, unsigned *out) { CALL(h); *out = 7; DONE(OK); }
int nvmlDeviceGetMigDeviceHandleByIndex(void *h, unsigned index, void **out) {
    CALL(h);
    for (unsigned k = 0; k < d->nslices; k++)
        if (d->slices[k].index == index) {
            slice_handles[i][k].tag = 2;
            slice_handles[i][k].device = i;
            slice_handles[i][k].slot = (int)k;
            *out = &slice_handles[i][k];
            DONE(OK);
        }
    DONE(NOT_FOUND);
}
int nvmlDeviceGetGpuInstanceId(void *h, unsigned *out) { CALL(h); if (!slice) DONE(NOT_SUPPORTED); *out = slice->gi; DONE(OK); }
int nvmlDeviceGetComputeInstanceId(void *h, unsigned *out) { CALL(h); if (!slice) DONE(NOT_SUPPORTED); *out = slice->ci; DONE(OK); }
struct attributes { unsigned sms, rest[7]; u64 memory_mb; };
int nvmlDeviceGetAttributes_v2(void *h, struct attributes *out) {
    CALL(h);
    if (!slice) DONE(NOT_SUPPORTED);
    memset(out, 0, sizeof *out);
    out->sms = slice->sms;
    out->memory_mb = slice->total >> 20;
    DONE(OK);
}

int nvmlEventSetCreate(void **out) { CALL(NULL); *out = malloc(1); DONE(OK); }
int nvmlEventSetFree(void *set) { free(set); return OK; }
int nvmlDeviceRegisterEvents(void *h, u64 types, void *set) { CALL(h); (void)types; (void)set; DONE(OK); }
struct event { void *device; u64 type, data; unsigned gi, ci; };
int nvmlEventSetWait_v2(void *set, struct event *out, unsigned msec) {
    (void)set;
    {
        CALL(NULL);
        if (delivered < nevents) {
            event_t *e = &events[delivered++];
            *out = (struct event){&devices[e->device], 8, e->xid, e->gi, e->ci};
            DONE(OK);
        }
        leave();
    }
    struct timespec pause = {0, (msec < 10 ? msec : 10) * 1000000L};
    nanosleep(&pause, NULL);
    return TIMEOUT;
}

#ifndef OLD_DRIVER
struct info { u64 time; unsigned pid, sm, mem, enc, dec, jpg, ofa; };
struct infos { unsigned version, n; u64 since; struct info *out; };
int nvmlDeviceGetProcessesUtilizationInfo(void *h, struct infos *q) {
    CALL(h);
    unsigned found = 0;
    for (unsigned k = 0; k < d->nshares; k++) found += d->shares[k].time > q->since;
    if (!found) DONE(NOT_FOUND);
    if (!q->out || q->n < found) { q->n = found; DONE(INSUFFICIENT_SIZE); }
    q->n = 0;
    for (unsigned k = 0; k < d->nshares; k++)
        if (d->shares[k].time > q->since)
            q->out[q->n++] = (struct info){d->shares[k].time, d->shares[k].pid, d->shares[k].sm, d->shares[k].mem, 0, 0, 0, 0};
    DONE(OK);
}
struct support { unsigned version, yes; };
int nvmlGpmQueryDeviceSupport(void *h, struct support *out) { CALL(h); out->yes = d->gpm; DONE(OK); }
struct gpm_sample { switches_t at[ENGINES]; int filled; };
int nvmlGpmSampleAlloc(struct gpm_sample **out) { *out = calloc(1, sizeof **out); return OK; }
int nvmlGpmSampleFree(struct gpm_sample *s) { free(s); return OK; }
int nvmlGpmSampleGet(void *h, struct gpm_sample *s) {
    CALL(h);
    memcpy(s->at, d->switches, sizeof s->at);
    s->filled = 1;
    DONE(OK);
}
int nvmlGpmMigSampleGet(void *h, unsigned gi, struct gpm_sample *s) {
    CALL(h);
    memcpy(s->at, d->switches, sizeof s->at);
    for (int k = 0; k < ENGINES; k++) s->at[k].requests *= gi;  // tells the instances apart
    s->filled = 1;
    DONE(OK);
}
struct metric { unsigned id; int code; double value; const char *names[3]; };
struct query { unsigned version, n; struct gpm_sample *before, *after; struct metric metrics[]; };
int nvmlGpmMetricsGet(struct query *q) {
    CALL(NULL);
    if (!q->before || !q->after || !q->before->filled || !q->after->filled) DONE(2);
    for (unsigned k = 0; k < q->n; k++) {
        struct metric *m = &q->metrics[k];
        unsigned engine = (m->id - FIRST_METRIC) / 5;
        m->code = NOT_SUPPORTED;
        if (m->id < FIRST_METRIC || engine >= ENGINES || !q->after->at[engine].present) continue;
        switches_t *a = &q->before->at[engine], *b = &q->after->at[engine];
        double requests = b->requests - a->requests, cycles = b->cycles - a->cycles, active = b->active - a->active;
        double values[] = {cycles, active, requests, requests > 0 ? active / requests : 0.0 / 0.0,
                           cycles > 0 ? 100.0 * active / cycles : 0};
        m->code = OK;
        m->value = values[(m->id - FIRST_METRIC) % 5];
    }
    DONE(OK);
}
#endif
