// SPDX-License-Identifier: GPL-2.0
/*
 * A scheduler (sched_ext) that knows tool calls. Weighted fair queueing by virtual time, on two levels: tenants share the
 * CPUs by their weights, and the calls of a tenant share what it has by theirs, however many threads each of them has.
 * A call's clock runs by what all its tasks use together; whoever's clock is furthest behind goes first. What is in no
 * call (the daemon, agents, the rest of the host) has a clock for each task and the weight of its nice value.
 *
 * Three queues. LATENCY is served first: calls of that class, and everything outside of calls, as long as their clock is
 * no further ahead than ALLOWANCE, so whoever uses more than its share loses the privilege, not the share. Besides, one
 * CPU serves at most LATENCY_ROW of them in a row while others wait. LATE holds tasks whose turn by virtual time is more
 * than LATE_AFTER away (a small weight among many large ones): once they have waited that long they get a slice for
 * nothing, each third turn at the most, or the kernel's watchdog, which ends a scheduler that leaves a task waiting for
 * 30 s, would end this one. SHARED holds the others.
 *
 * Needs Linux 6.19 (scx_bpf_dsq_peek): without a look at the head of a queue, the task whose slice has just ended could
 * not be compared with it and would always give way, which makes weights mean nothing where few tasks run.
 *
 * The only state is in the maps of this object; nothing is pinned. It ends with the process that holds its link, and the
 * kernel's own scheduler takes all tasks back.
 */
#include "scx.h"
#include "sched.h"

char LICENSE[] SEC("license") = "GPL";

#define MSEC 1000000ULL
#define SLICE (5 * MSEC)
#define LAG SLICE		 /* of virtual time that a sleeper may be owed when it wakes */
#define ALLOWANCE (20 * MSEC)	 /* of virtual time */
#define LATENCY_ROW 4
#define LATE_TURN 3
#define LATE_AFTER (5000 * MSEC) /* of real time */
#define RATE_EVERY (100 * MSEC)
#define RATE_ONE 1024
#define MOST_AT_ONCE (1000 * MSEC) /* charged in one step: a clock that was wrong once must not stay so */
#define SCALE_ONE 1024
#define SCALE_MOST (SCALE_ONE * 100000ULL)
#define MAX_CPUS 1024
#define LOOKS 8			 /* CPUs that are asked for somebody who may be sent away */

enum { LATENCY = 1, SHARED = 2, LATE = 3 };

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_SCHED_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_sched_call);
} sched_calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_SCHED_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_sched_clock);
} sched_clocks SEC(".maps");

/* Tenants: the weights of those calls of theirs, together, that have something to run. Made by user space. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_SCHED_MAX_GROUPS);
	__type(key, __u64);
	__type(value, __u64);
} sched_groups SEC(".maps");

struct task {
	__u64 clock;   /* of its own, where it is in no call */
	__u64 key;     /* by which it stands in its queue */
	__u64 started; /* sum_exec_runtime when it was last looked at */
	__u64 charged; /* real nanoseconds that were charged ahead and have not been used yet */
	__u64 payer;   /* the call that they were charged to; 0: its own clock */
	__u64 counted; /* the call among whose runnable tasks it counts; 0: none */
	__u64 since;   /* real time at which it was queued in LATE */
	__u32 fast;    /* it came by the queue LATENCY */
	__u32 late;    /* it stands in LATE; while it runs: what it uses is not charged, and time does not pass by it */
};

struct {
	__uint(type, BPF_MAP_TYPE_TASK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct task);
} sched_tasks SEC(".maps");

struct cpu {
	__u32 fast; /* who runs there came by LATENCY */
	__u32 row;  /* of those, how many in a row */
	__u32 turn; /* others served since LATE was */
	__u32 pad[13]; /* a cache line each */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_CPUS);
	__type(key, __u32);
	__type(value, struct cpu);
} sched_cpus SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct corral_sched_end);
} sched_end SEC(".maps");

/* Virtual time: the latest key of those that were given a CPU. Several CPUs write it; the latest wins, or nearly. */
static __u64 now;
static __u64 rate = RATE_ONE; /* virtual nanoseconds in RATE_ONE real ones, lately */
static __u64 rate_from, rate_at;

static __always_inline struct task_struct___corral *look(struct task_struct *p)
{
	return (void *)p;
}

static __always_inline struct task *task_of(struct task_struct *p)
{
	return bpf_task_storage_get(&sched_tasks, p, NULL, 0);
}

/* A few loads: what a cache of it would cost to keep right when a task is moved. */
static __always_inline __u64 group_of(struct task_struct *p)
{
	return BPF_CORE_READ(p, cgroups, dfl_cgrp, kn, id);
}

static __always_inline __u64 scaled(__u64 real, __u64 scale)
{
	return (real < MOST_AT_ONCE ? real : MOST_AT_ONCE) * scale / SCALE_ONE;
}

/* How fast the clock runs, in units of SCALE_ONE for the weight 100. */
static __always_inline __u64 scale_of_call(struct corral_sched_call *call)
{
	__u64 *active = bpf_map_lookup_elem(&sched_groups, &call->group);
	__u64 own = call->weight ? call->weight : 100, share = call->group_weight ? call->group_weight : 100, scale;

	/* The tenant's weight is divided among those of its calls that have something to run, itself among them. */
	scale = (active && *active > own ? *active : own) * 100 * SCALE_ONE / (own * share);
	if (scale > SCALE_MOST)
		return SCALE_MOST;
	return scale ? scale : 1;
}

static __always_inline __u64 scale_of_task(struct task_struct *p)
{
	__u32 weight = look(p)->scx.weight;

	return 100 * SCALE_ONE / (weight ? weight : 100);
}

static __always_inline void not_before(__u64 *clock, __u64 least)
{
	__u64 at = *clock;

	if ((__s64)(at - least) < 0)
		__sync_val_compare_and_swap(clock, at, least);
}

/* Charges one slice ahead, so that of many tasks that become runnable at once each stands behind the one before. Sets
 * the key by which the task is queued, and says whether it may go to LATENCY. */
static __always_inline bool take_place(struct task_struct *p, struct task *task)
{
	__u64 id = group_of(p), scale, *clock;
	struct corral_sched_call *call = bpf_map_lookup_elem(&sched_calls, &id);
	struct corral_sched_clock *of_call = call ? bpf_map_lookup_elem(&sched_clocks, &id) : NULL;
	bool prompt;

	if (of_call) {
		scale = scale_of_call(call);
		clock = &of_call->at;
		prompt = call->latency;
	} else {
		id = 0;
		scale = scale_of_task(p);
		clock = &task->clock;
		prompt = true;
	}
	not_before(clock, now - LAG);
	if (task->charged && task->payer == id) {
		/* it was taken out of its queue and comes back (a new affinity, a new nice value) */
		if ((__s64)(task->key - (now - LAG)) < 0)
			task->key = now - LAG;
	} else {
		task->key = __sync_fetch_and_add(clock, scaled(SLICE, scale));
		task->charged = SLICE;
		task->payer = id;
	}
	return prompt && (__s64)(task->key - (now + ALLOWANCE)) <= 0;
}

/* What was used instead of what was charged. */
static __always_inline void settle(struct task_struct *p, struct task *task)
{
	__u64 total = p->se.sum_exec_runtime, used = total - task->started, charged = task->charged, scale;
	__u64 id = task->payer;
	struct corral_sched_call *call;
	struct corral_sched_clock *of_call;
	__u64 *clock = &task->clock;

	task->started = total;
	if (task->late) { /* a present: its place in virtual time, which is paid for, stays what it was */
		task->late = 0;
		return;
	}
	task->charged = 0;
	if (!charged) /* it came to a CPU by a way of the kernel's own */
		id = group_of(p);
	call = id ? bpf_map_lookup_elem(&sched_calls, &id) : NULL;
	of_call = call ? bpf_map_lookup_elem(&sched_clocks, &id) : NULL;
	if (of_call) {
		scale = scale_of_call(call);
		clock = &of_call->at;
	} else {
		scale = scale_of_task(p);
	}
	if (used >= charged)
		__sync_fetch_and_add(clock, scaled(used - charged, scale));
	else
		__sync_fetch_and_add(clock, -scaled(charged - used, scale));
}

static __always_inline void time_passes(__u64 key)
{
	__u64 real = bpf_ktime_get_ns();

	if ((__s64)(key - now) > 0)
		now = key;
	if (real - rate_at > RATE_EVERY) {
		__u64 passed = (now - rate_from) * RATE_ONE / (real - rate_at);

		/* An idle host's time stands still, and would have everybody be late. */
		rate = passed > RATE_ONE / 256 ? passed : RATE_ONE / 256;
		rate_from = now;
		rate_at = real;
	}
}

static __always_inline struct cpu *cpu_of(__s32 number)
{
	__u32 key = number;

	return bpf_map_lookup_elem(&sched_cpus, &key);
}

/* Somebody's CPU for one who must not wait: an idle one, or one whose task has no hurry. */
static __always_inline void make_room(struct task_struct *p, bool fast)
{
	const struct cpumask *allowed = look(p)->cpus_ptr;
	__s32 cpu = scx_bpf_pick_idle_cpu(allowed, 0);
	__u32 count, i;

	if (cpu >= 0) {
		scx_bpf_kick_cpu(cpu, SCX_KICK_IDLE);
		return;
	}
	if (!fast)
		return;
	cpu = scx_bpf_task_cpu(p);
	count = scx_bpf_nr_cpu_ids();
	for (i = 0; i < LOOKS; i++, cpu++) {
		struct cpu *there;

		if (cpu >= count)
			cpu = 0;
		there = cpu_of(cpu);
		if (there && !there->fast && bpf_cpumask_test_cpu(cpu, allowed)) {
			scx_bpf_kick_cpu(cpu, SCX_KICK_PREEMPT);
			return;
		}
	}
}

SEC("struct_ops/corral_select_cpu")
__s32 BPF_PROG(corral_select_cpu, struct task_struct *p, __s32 before, __u64 wake_flags)
{
	struct task *task = task_of(p);
	bool idle = false;
	__s32 cpu = scx_bpf_select_cpu_dfl(p, before, wake_flags, &idle);

	if (idle && task) {
		task->fast = take_place(p, task);
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SLICE, 0);
	}
	return cpu;
}

SEC("struct_ops/corral_enqueue")
void BPF_PROG(corral_enqueue, struct task_struct *p, __u64 flags)
{
	struct task *task = task_of(p);
	__s64 ahead;

	/* The kernel's own threads of one CPU: others wait for them. */
	if (!task || ((look(p)->flags & PF_KTHREAD) && look(p)->nr_cpus_allowed == 1)) {
		scx_bpf_dsq_insert(p, SCX_DSQ_LOCAL, SLICE, flags);
		return;
	}
	task->fast = take_place(p, task);
	task->late = 0;
	ahead = task->key - now;
	if (task->fast) {
		scx_bpf_dsq_insert_vtime(p, LATENCY, SLICE, task->key, flags);
	} else if (ahead > 0 && ahead > LATE_AFTER / RATE_ONE * rate) {
		task->late = 1;
		task->since = bpf_ktime_get_ns();
		scx_bpf_dsq_insert_vtime(p, LATE, SLICE, task->since, flags);
	} else {
		scx_bpf_dsq_insert_vtime(p, SHARED, SLICE, task->key, flags);
	}
	make_room(p, task->fast);
}

/* Whether the one that ran goes on: it is runnable, and nobody in SHARED is further behind. */
static __always_inline bool goes_on(struct task_struct *prev)
{
	struct task_struct *head;
	struct task *task, *other;

	if (!prev || !(look(prev)->scx.flags & SCX_TASK_QUEUED))
		return false;
	task = task_of(prev);
	if (!task)
		return false;
	if (!look(prev)->scx.slice)
		settle(prev, task);
	head = scx_bpf_dsq_peek(SHARED);
	other = head ? task_of(head) : NULL;
	if (!task->charged)
		take_place(prev, task);
	if (other && (__s64)(other->key - task->key) < 0)
		return false; /* its place is paid for already, and kept when it is queued */
	time_passes(task->key);
	task->fast = 0; /* it has used a whole slice: somebody who may not wait may send it away */
	scx_bpf_task_set_slice(prev, SLICE);
	return true;
}

/* The one that stands in LATE for longest. */
static __always_inline struct task *first_late(void)
{
	struct task_struct *head = scx_bpf_dsq_peek(LATE);

	return head ? task_of(head) : NULL;
}

SEC("struct_ops/corral_dispatch")
void BPF_PROG(corral_dispatch, __s32 number, struct task_struct *prev)
{
	struct cpu *cpu = cpu_of(number);
	struct cpu unknown = {};
	struct task *late = first_late();

	if (!cpu)
		cpu = &unknown;
	if (late && cpu->turn >= LATE_TURN - 1 && bpf_ktime_get_ns() - late->since > LATE_AFTER &&
	    scx_bpf_dsq_move_to_local(LATE)) {
		cpu->turn = 0;
		return;
	}
	cpu->turn++;
	if (cpu->row < LATENCY_ROW && scx_bpf_dsq_move_to_local(LATENCY)) {
		cpu->row++;
		return;
	}
	cpu->row = 0;
	if (goes_on(prev)) {
		cpu->fast = 0;
		return;
	}
	if (scx_bpf_dsq_move_to_local(SHARED) || scx_bpf_dsq_move_to_local(LATENCY) || !late)
		return;
	late->late = 0; /* nobody else wants this CPU: no present */
	scx_bpf_dsq_move_to_local(LATE);
}

/* A call counts in its tenant while it has something to run. */
SEC("struct_ops/corral_runnable")
void BPF_PROG(corral_runnable, struct task_struct *p, __u64 flags)
{
	struct task *task = task_of(p);
	__u64 id = group_of(p), *active;
	struct corral_sched_call *call = bpf_map_lookup_elem(&sched_calls, &id);
	struct corral_sched_clock *clock = call ? bpf_map_lookup_elem(&sched_clocks, &id) : NULL;

	if (!task || !clock || task->counted)
		return;
	task->counted = id;
	if (__sync_fetch_and_add(&clock->runnable, 1))
		return;
	active = bpf_map_lookup_elem(&sched_groups, &call->group);
	clock->counted = call->weight;
	if (active)
		__sync_fetch_and_add(active, (__u64)call->weight);
}

SEC("struct_ops/corral_quiescent")
void BPF_PROG(corral_quiescent, struct task_struct *p, __u64 flags)
{
	struct task *task = task_of(p);
	struct corral_sched_call *call;
	struct corral_sched_clock *clock;
	__u64 id, *active;

	if (!task || !task->counted)
		return;
	id = task->counted;
	task->counted = 0;
	call = bpf_map_lookup_elem(&sched_calls, &id);
	clock = call ? bpf_map_lookup_elem(&sched_clocks, &id) : NULL;
	if (!clock || __sync_fetch_and_add(&clock->runnable, -1) != 1)
		return;
	/* what it was counted with, not what it weighs now */
	active = bpf_map_lookup_elem(&sched_groups, &call->group);
	if (active)
		__sync_fetch_and_add(active, -(__u64)clock->counted);
	clock->counted = 0;
}

SEC("struct_ops/corral_running")
void BPF_PROG(corral_running, struct task_struct *p)
{
	struct task *task = task_of(p);
	struct cpu *cpu = cpu_of(scx_bpf_task_cpu(p));

	if (!task)
		return;
	task->started = p->se.sum_exec_runtime;
	if (task->charged && !task->late)
		time_passes(task->key);
	if (cpu)
		cpu->fast = task->fast;
}

SEC("struct_ops/corral_stopping")
void BPF_PROG(corral_stopping, struct task_struct *p, bool runnable)
{
	struct task *task = task_of(p);

	if (task && p->se.sum_exec_runtime != task->started)
		settle(p, task);
}

SEC("struct_ops/corral_init_task")
__s32 BPF_PROG(corral_init_task, struct task_struct *p, struct scx_init_task_args *args)
{
	struct task *task = bpf_task_storage_get(&sched_tasks, p, NULL, BPF_LOCAL_STORAGE_GET_F_CREATE);

	if (!task)
		return -12; /* ENOMEM: this fork fails, or the scheduler does not start */
	task->clock = now;
	return 0;
}

SEC("struct_ops/corral_init") /* sleepable: bpf/sched.py says so to libbpf, older versions of which know no such name */
__s32 BPF_PROG(corral_init)
{
	__s32 err;

	if (!bpf_core_type_exists(struct cpumask)) /* always there; but without this clang would write it as declared only */
		return -22;
	err = scx_bpf_create_dsq(LATENCY, -1);
	if (!err)
		err = scx_bpf_create_dsq(SHARED, -1);
	if (!err)
		err = scx_bpf_create_dsq(LATE, -1);
	return err;
}

SEC("struct_ops/corral_ended")
void BPF_PROG(corral_ended, struct scx_exit_info *info)
{
	__u32 zero = 0;
	struct corral_sched_end *end = bpf_map_lookup_elem(&sched_end, &zero);

	if (!end)
		return;
	end->code = BPF_CORE_READ(info, exit_code);
	bpf_probe_read_kernel_str(end->reason, sizeof(end->reason), BPF_CORE_READ(info, reason));
	bpf_probe_read_kernel_str(end->message, sizeof(end->message), BPF_CORE_READ(info, msg));
	end->kind = BPF_CORE_READ(info, kind); /* last: it says that the rest is there */
}

SEC(".struct_ops")
struct sched_ext_ops corral = {
	.select_cpu = (void *)corral_select_cpu,
	.enqueue = (void *)corral_enqueue,
	.dispatch = (void *)corral_dispatch,
	.runnable = (void *)corral_runnable,
	.running = (void *)corral_running,
	.stopping = (void *)corral_stopping,
	.quiescent = (void *)corral_quiescent,
	.init_task = (void *)corral_init_task,
	.init = (void *)corral_init,
	.exit = (void *)corral_ended,
	.timeout_ms = 30000,
	.name = "corral",
};
