// SPDX-License-Identifier: GPL-2.0
/*
 * What a call's tasks used, at no cost per event: the kernel counts it in each task anyway. A task that ends is
 * harvested into its call's counters; live ones are summed when user space asks. Total = harvested + live.
 *
 * A reader takes the harvested counters first and the live ones after: a task that ends in between is then missing
 * from that one reading (never counted twice) and there in the next; the `harvests` counter tells the reader.
 */
#include "usage.h"

char LICENSE[] SEC("license") = "GPL";

/* Local copies of the two signatures: which one the kernel has is decided by CO-RE when the object is loaded. */
typedef void (*btf_trace_sched_process_exit___grouped)(void *, struct task_struct *, bool);
typedef void (*btf_trace_mark_victim___pid)(void *, int);

/* Whether the task is the last of its process. */
static __always_inline bool process_ends(unsigned long long *ctx, struct task_struct *task)
{
	/* Since 6.16 the tracepoint says so itself. Before, two threads that end at the same instant may both see 0. */
	if (bpf_core_type_exists(btf_trace_sched_process_exit___grouped))
		return ((volatile unsigned long long *)ctx)[1] & 1;
	return BPF_CORE_READ(task, signal, live.counter) == 0;
}

/*
 * Kernels before 6.8 tell mark_victim's pid only, from which a program cannot reach the group. But the victim's
 * signal struct remembers it, so it is reported when it ends.
 */
static __always_inline void ended_by_oom(struct task_struct *task, __u64 id, struct corral_counters *count)
{
	struct corral_oom_event *event;
	struct corral_state *state;

	if (!bpf_core_type_exists(btf_trace_mark_victim___pid) || !BPF_CORE_READ(task, signal, oom_mm))
		return;
	count->oom_kills++;
	state = bpf_map_lookup_elem(&states, &id);
	if (!state || __sync_fetch_and_add(&state->oom_sent, 1) >= CORRAL_OOM_EVENTS)
		return;
	event = NEW_EVENT(corral_oom_event, CORRAL_EV_OOM, id);
	if (!event)
		return;
	event->tgid = bpf_get_current_pid_tgid() >> 32;
	event->uid = bpf_get_current_uid_gid();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void harvest(struct task_struct *task, __u64 key, struct corral_counters *count)
{
	struct corral_usage use;

	usage_of(task, &use);
	since_baseline(key, &use);
	add_usage(&count->used, &use);
	count->harvests++;
}

/* Also of tasks that have left their call: the address will be another task's. */
static __always_inline void drop_baseline(__u64 key)
{
	if (bpf_map_lookup_elem(&baselines, &key))
		bpf_map_delete_elem(&baselines, &key);
}

/* Where the end of a task is seen: up to Linux 6.18 here. The loader takes one of three programs (bpf/loader.py). */
SEC("tp_btf/sched_process_exit")
int corral_exit(unsigned long long *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf();
	__u64 id = bpf_get_current_cgroup_id(), key = (__u64)task;
	struct corral_counters *count = bpf_map_lookup_elem(&counters, &id);

	if (count) {
		harvest(task, key, count);
		if (process_ends(ctx, task)) {
			count->exits++;
			ended_by_oom(task, id, count);
		}
	}
	drop_baseline(key);
	return 0;
}

/*
 * A process is counted once, when its leader is gone and no thread lives. A leader that ended before its threads is
 * remembered (by the address of what they share), and the first thread that finds nobody alive counts the process.
 */
static __always_inline bool process_is_over(struct task_struct *task)
{
	struct signal_struct *shared = BPF_CORE_READ(task, signal);
	bool alive = BPF_CORE_READ(shared, live.counter) != 0;
	struct corral_usage nothing = {};
	__u64 key = (__u64)shared;

	if (BPF_CORE_READ(task, group_leader) == task) {
		if (alive)
			bpf_map_update_elem(&baselines, &key, &nothing, BPF_ANY);
		return !alive;
	}
	return !alive && bpf_map_lookup_elem(&baselines, &key) && !bpf_map_delete_elem(&baselines, &key);
}

static __always_inline int task_is_dead(struct task_struct *task)
{
	__u64 id = cgroup_id_of(task), key = (__u64)task;
	struct corral_counters *count = bpf_map_lookup_elem(&counters, &id);

	if (count) {
		harvest(task, key, count);
		if (process_is_over(task))
			count->exits++;
	}
	drop_baseline(key);
	return 0;
}

/*
 * Tracepoints may be preempted since 7.0, and a program that another task enters on the same CPU meanwhile is not run
 * for that task. These two are reached with preemption off. Since 6.19 a group is told to be empty after its last
 * task has come by here, so whoever waits for that finds every task harvested. The first costs nothing but at the end
 * of a task, and needs fentry; the second is asked at each switch of tasks, and needs nothing.
 */
SEC("fentry/cgroup_task_dead")
int BPF_PROG(corral_dead, struct task_struct *task)
{
	return task_is_dead(task);
}

SEC("tp_btf/sched_switch")
int BPF_PROG(corral_switch, bool preempt, struct task_struct *from, struct task_struct *to)
{
	if (BPF_CORE_READ(from, __state) != TASK_DEAD)
		return 0;
	return task_is_dead(from);
}

SEC("iter/task")
int corral_tasks(struct bpf_iter__task *ctx)
{
	struct task_struct *task = ctx->task;
	struct corral_counters *count;
	struct corral_config *conf;
	struct corral_usage use;
	struct corral_live *sum;
	__u64 id, key = (__u64)task;
	__u32 zero = 0;

	/* A task that is exiting has been harvested, or will be in a moment; zombies are among them. */
	if (!task || BPF_CORE_READ(task, flags) & (PF_EXITING | PF_KTHREAD))
		return 0;
	conf = bpf_map_lookup_elem(&config, &zero);
	id = cgroup_id_of(task);
	sum = bpf_map_lookup_elem(&live, &id);
	if (!conf || !sum)
		return 0;
	if (sum->pass != conf->pass) {
		__builtin_memset(sum, 0, sizeof(*sum));
		sum->pass = conf->pass;
	}
	usage_of(task, &use);
	if (conf->settle == id) {
		/* What it used so far stays with this call, whatever group it goes to next. */
		struct corral_usage now = use;

		count = bpf_map_lookup_elem(&counters, &id);
		if (count && !bpf_map_update_elem(&baselines, &key, &now, BPF_ANY)) {
			add_usage(&count->used, &use);
			return 0;
		}
	}
	since_baseline(key, &use);
	add_usage(&sum->used, &use);
	sum->tasks++;
	return 0;
}

struct walk {
	struct list_head *head;
	struct list_head *next;
};

static long keep_baseline(__u32 index, void *data)
{
	struct walk *walk = data;
	struct list_head *node = walk->next;
	struct task_struct *task;
	struct corral_usage use;
	__u64 key;

	if (!node || node == walk->head)
		return 1;
	task = (void *)node - bpf_core_field_offset(struct task_struct, thread_node);
	key = (__u64)task;
	usage_of(task, &use);
	bpf_map_update_elem(&baselines, &key, &use, BPF_ANY);
	walk->next = BPF_CORE_READ(node, next);
	return 0;
}

/* A process that is moved into a call does not bring its past. */
SEC("tp_btf/cgroup_attach_task")
int BPF_PROG(corral_move, struct cgroup *to, const char *path, struct task_struct *task, bool whole_process)
{
	__u64 id = BPF_CORE_READ(to, kn, id), key = (__u64)task;
	struct corral_usage use;
	struct list_head *head;
	struct walk walk;

	/* The v1 hierarchies count their ids by themselves: theirs may equal one of ours. The v2 one is number 0. */
	if (BPF_CORE_READ(to, root, hierarchy_id) != 0 || !bpf_map_lookup_elem(&calls, &id))
		return 0;
	if (!whole_process) {
		usage_of(task, &use);
		bpf_map_update_elem(&baselines, &key, &use, BPF_ANY);
		return 0;
	}
	head = (void *)BPF_CORE_READ(task, signal) + bpf_core_field_offset(struct signal_struct, thread_head);
	walk.head = head;
	walk.next = BPF_CORE_READ(head, next);
	bpf_loop(CORRAL_MAX_THREADS, keep_baseline, &walk, 0);
	return 0;
}
