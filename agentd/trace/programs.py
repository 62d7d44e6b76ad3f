"""The eBPF programs of ``corral trace``, in bcc's C. Each tool is compiled by itself: one that a kernel refuses costs
only itself.

A task counts when it is below the call's group (bpf_current_task_under_cgroup), so nested calls count, too. What a
kernel thread does on the call's account (writing back dirty pages) is not seen.
"""

PROLOGUE = """
#include <uapi/linux/ptrace.h>
#include <linux/sched.h>
BPF_CGROUP_ARRAY(the_call, 1);
"""
_OURS = "(the_call.check_current_task(0) > 0)"  # not a macro of C: bcc refuses map functions inside one

OFFCPU = """
struct begin { u64 at; int stack; u32 state; };
struct off_key { u32 pid; int stack; u32 state; char comm[16]; };
struct off_sum { u64 count; u64 ns; u64 most; };
BPF_HASH(off_begin, u32, struct begin, 16384);
BPF_HASH(off_sums, struct off_key, struct off_sum, 16384);
BPF_STACK_TRACE(stacks, 8192);

TRACEPOINT_PROBE(sched, sched_switch) {
    u64 now = bpf_ktime_get_ns();
    u32 next = args->next_pid, prev = args->prev_pid;
    struct begin *left = off_begin.lookup(&next);
    if (left) {
        struct off_key key = {};
        key.pid = next;
        key.stack = left->stack;
        key.state = left->state;
        __builtin_memcpy(key.comm, args->next_comm, sizeof(key.comm));
        struct off_sum none = {};
        struct off_sum *sum = off_sums.lookup_or_try_init(&key, &none);
        if (sum) {
            u64 took = now - left->at;
            sum->count++;
            sum->ns += took;
            if (took > sum->most)
                sum->most = took;
        }
        off_begin.delete(&next);
    }
    if (prev && OURS) {
        struct begin leaving = {};
        leaving.at = now;
        leaving.stack = stacks.get_stackid(args, 0);
        leaving.state = args->prev_state;
        off_begin.update(&prev, &leaving);
    }
    return 0;
}
"""

SYSCALLS = """
struct entry { u64 at; u32 number; };
struct sys_sum { u64 count; u64 errors; u64 ns; u64 most; };
BPF_HASH(sys_begin, u64, struct entry, 16384);
BPF_HASH(sys_sums, u32, struct sys_sum, 1024);

TRACEPOINT_PROBE(raw_syscalls, sys_enter) {
    if (!OURS)
        return 0;
    u64 id = bpf_get_current_pid_tgid();
    struct entry entry = {};
    entry.at = bpf_ktime_get_ns();
    entry.number = args->id;
    sys_begin.update(&id, &entry);
    return 0;
}

TRACEPOINT_PROBE(raw_syscalls, sys_exit) {
    u64 id = bpf_get_current_pid_tgid();
    struct entry *entry = sys_begin.lookup(&id);
    if (!entry)
        return 0;
    u32 number = entry->number;
    u64 took = bpf_ktime_get_ns() - entry->at;
    sys_begin.delete(&id);
    struct sys_sum none = {};
    struct sys_sum *sum = sys_sums.lookup_or_try_init(&number, &none);
    if (sum) {
        sum->count++;
        sum->ns += took;
        if (args->ret < 0)
            sum->errors++;
        if (took > sum->most)
            sum->most = took;
    }
    return 0;
}
"""

FILES = """
struct opening { const char *path; int flags; };
struct event { u64 at; u32 pid; int result; int flags; char comm[16]; char path[256]; };
BPF_HASH(openings, u64, struct opening, 16384);
BPF_PERF_OUTPUT(events);

TRACEPOINT_PROBE(syscalls, sys_enter_openat) {
    if (!OURS)
        return 0;
    u64 id = bpf_get_current_pid_tgid();
    struct opening opening = {};
    opening.path = args->filename;
    opening.flags = args->flags;
    openings.update(&id, &opening);
    return 0;
}

TRACEPOINT_PROBE(syscalls, sys_exit_openat) {
    u64 id = bpf_get_current_pid_tgid();
    struct opening *opening = openings.lookup(&id);
    if (!opening)
        return 0;
    struct event event = {};
    event.at = bpf_ktime_get_ns();
    event.pid = id >> 32;
    event.result = args->ret;
    event.flags = opening->flags;
    bpf_get_current_comm(&event.comm, sizeof(event.comm));
    bpf_probe_read_user_str(&event.path, sizeof(event.path), opening->path);
    openings.delete(&id);
    events.perf_submit(args, &event, sizeof(event));
    return 0;
}
"""

# From where the call asks for it (block_bio_queue, in its own context) until the device has done it. A partition has
# another device number than its disk, so requests are known by disk (major) and sector.
BLOCKIO = """
struct request { u64 sector; u32 major; u32 pad; };
struct asked { u64 at; u64 bytes; u32 pid; u32 writes; };
struct io_key { u32 major; u32 writes; u64 slot; };
struct io_sum { u64 count; u64 bytes; u64 ns; u64 most; };
BPF_HASH(asked_for, struct request, struct asked, 16384);
BPF_HASH(io_sums, struct io_key, struct io_sum, 4096);

TRACEPOINT_PROBE(block, block_bio_queue) {
    if (!OURS || !args->nr_sector)
        return 0;
    struct request request = {};
    request.sector = args->sector;
    request.major = args->dev >> 20;
    struct asked asked = {};
    asked.at = bpf_ktime_get_ns();
    asked.bytes = (u64)args->nr_sector << 9;
    asked.pid = bpf_get_current_pid_tgid() >> 32;
    asked.writes = args->rwbs[0] == 'W' || args->rwbs[1] == 'W';
    asked_for.update(&request, &asked);
    return 0;
}

TRACEPOINT_PROBE(block, block_rq_complete) {
    struct request request = {};
    request.sector = args->sector;
    request.major = args->dev >> 20;
    struct asked *asked = asked_for.lookup(&request);
    if (!asked)
        return 0;
    u64 took = bpf_ktime_get_ns() - asked->at;
    struct io_key key = {};
    key.major = request.major;
    key.writes = asked->writes;
    key.slot = bpf_log2l(took / 1000);
    struct io_sum none = {};
    struct io_sum *sum = io_sums.lookup_or_try_init(&key, &none);
    if (sum) {
        sum->count++;
        sum->bytes += asked->bytes;
        sum->ns += took;
        if (took > sum->most)
            sum->most = took;
    }
    asked_for.delete(&request);
    return 0;
}
"""

PROCESSES = """
struct event { u64 at; u64 lived; u32 pid; u32 parent; int kind; int status; char comm[16]; char path[200]; };
BPF_HASH(born, u32, u64, 16384);
BPF_PERF_OUTPUT(events);
BPF_PERCPU_ARRAY(room, struct event, 1);

TRACEPOINT_PROBE(sched, sched_process_fork) {
    if (!OURS)
        return 0;
    u32 child = args->child_pid;
    u64 now = bpf_ktime_get_ns();
    born.update(&child, &now);
    return 0;
}

static struct event *filled(int kind) {
    int first = 0;
    struct event *event = room.lookup(&first);
    if (!event)
        return 0;
    event->at = bpf_ktime_get_ns();
    event->pid = bpf_get_current_pid_tgid() >> 32;
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    event->parent = task->real_parent->tgid;
    event->kind = kind;
    event->status = 0;
    event->lived = 0;
    event->path[0] = 0;
    bpf_get_current_comm(&event->comm, sizeof(event->comm));
    return event;
}

TRACEPOINT_PROBE(sched, sched_process_exec) {
    if (!OURS)
        return 0;
    struct event *event = filled(1);
    if (!event)
        return 0;
    TP_DATA_LOC_READ_STR(&event->path, filename, sizeof(event->path));
    events.perf_submit(args, event, sizeof(*event));
    return 0;
}

TRACEPOINT_PROBE(sched, sched_process_exit) {
    u64 id = bpf_get_current_pid_tgid();
    if ((u32)id != id >> 32 || !OURS)
        return 0;
    struct event *event = filled(2);
    if (!event)
        return 0;
    u32 pid = id >> 32;
    u64 *since = born.lookup(&pid);
    if (since) {
        event->lived = event->at - *since;
        born.delete(&pid);
    }
    struct task_struct *task = (struct task_struct *)bpf_get_current_task();
    event->status = task->exit_code;
    events.perf_submit(args, event, sizeof(*event));
    return 0;
}
"""

_TOOLS = {"offcpu": OFFCPU, "syscalls": SYSCALLS, "files": FILES, "blockio": BLOCKIO, "processes": PROCESSES}
SOURCES = {name: PROLOGUE + text.replace("OURS", _OURS) for name, text in _TOOLS.items()}
