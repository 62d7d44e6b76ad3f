// SPDX-License-Identifier: GPL-2.0
/*
 * The brake. rss_stat fires whenever a process's resident set changes, in the context of the page fault. There the
 * usage of the task's own memory cgroup is compared with what its call was armed with; past the brake the process is
 * stopped before it returns to user space. It works while nobody listens: thresholds live in the map.
 *
 * Not every fault is looked at. A look says how far the threshold is, and so for how many faults more, were each of them
 * a huge page and all CPUs at it, it cannot be reached: that many are let pass (credit). Close to the threshold there is
 * no credit, and every fault is looked at. What grows without faults (page cache) is not foreseen, and found at the next look.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

#define MOST_CREDIT 64 /* faults */
#define NO_CALL_CREDIT 16 /* of a process that is in no call, or whose call has no threshold */

#define SIGSTOP_NUMBER 19	  /* x86, arm64, riscv: alike */
#define SIGSTOP_BIT (1UL << (SIGSTOP_NUMBER - 1))
#define SIGNAL_STOP_STOPPED 0x1 /* include/linux/sched/signal.h */

/* Of the memory cgroup that the task is charged to: unified, or the twin in the v1 memory hierarchy. */
static __always_inline struct cgroup_subsys_state *memory_css(struct task_struct *task)
{
	struct css_set *set = BPF_CORE_READ(task, cgroups);
	struct cgroup_subsys_state *css = NULL;
	__u64 at = bpf_core_field_offset(struct css_set, subsys) +
		   bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id) * sizeof(void *);

	bpf_probe_read_kernel(&css, sizeof(css), (void *)set + at);
	return css;
}

/* Whether the process stops already: a stop is pending, under way in its threads, or done. */
static __always_inline bool stopping(struct task_struct *task)
{
	struct signal_struct *signal = BPF_CORE_READ(task, signal);

	return BPF_CORE_READ(signal, shared_pending.signal.sig[0]) & SIGSTOP_BIT ||
	       BPF_CORE_READ(signal, group_stop_count) > 0 ||
	       BPF_CORE_READ(signal, flags) & SIGNAL_STOP_STOPPED;
}

static __always_inline void tell(__u32 kind, __u64 id, __u64 usage, __u64 threshold)
{
	struct corral_memory_event *event = NEW_EVENT(corral_memory_event, kind, id);
	__u64 who = bpf_get_current_pid_tgid();

	if (!event)
		return;
	event->tgid = who >> 32;
	event->tid = (__u32)who;
	event->usage = usage;
	event->threshold = threshold;
	bpf_ringbuf_submit(event, 0);
}

static __always_inline void give(struct corral_credit *credit, struct mm_struct *mm, __u32 generation, __u64 left)
{
	credit->mm = (__u64)mm;
	credit->generation = generation;
	credit->left = left;
}

SEC("tp_btf/rss_stat")
int BPF_PROG(corral_rss, struct mm_struct *mm)
{
	struct cgroup_subsys_state *css;
	struct corral_counters *count;
	struct corral_credit *credit;
	struct corral_config *conf;
	struct corral_state *state;
	struct task_struct *task;
	struct corral_call *call;
	struct mem_cgroup *memcg;
	__u64 id, usage, notify, brake, next, left;
	__u32 zero = 0, epoch, generation;

	/* Cheapest first: every page fault of the host comes by here. */
	conf = bpf_map_lookup_elem(&config, &zero);
	if (!conf || !conf->armed)
		return 0;
	credit = bpf_map_lookup_elem(&credits, &zero);
	if (!credit)
		return 0;
	generation = conf->generation;
	if (credit->mm == (__u64)mm && credit->generation == generation && credit->left) {
		credit->left--;
		return 0;
	}
	task = bpf_get_current_task_btf();
	if (task->mm != mm)
		return 0; /* reclaim, exec or a debugger works on another's memory */
	id = bpf_get_current_cgroup_id();
	call = bpf_map_lookup_elem(&calls, &id);
	notify = call ? call->notify : 0;
	brake = call ? call->brake : 0;
	if (!notify && !brake) {
		give(credit, mm, generation, NO_CALL_CREDIT);
		return 0;
	}

	css = memory_css(task);
	if (!css)
		return 0;
	memcg = (void *)css - bpf_core_field_offset(struct mem_cgroup, css);
	usage = BPF_CORE_READ(memcg, memory.usage.counter) * conf->page_size;
	if ((!notify || usage <= notify) && (!brake || usage <= brake)) {
		next = !notify || (brake && brake < notify) ? brake : notify;
		left = conf->stride ? (next - usage) / conf->stride : 0;
		give(credit, mm, generation, left < MOST_CREDIT ? left : MOST_CREDIT);
		return 0;
	}
	if (brake && usage <= brake) {
		/* between the two: the notice may be sent already, the brake is still ahead */
		left = conf->stride ? (brake - usage) / conf->stride : 0;
		give(credit, mm, generation, left < MOST_CREDIT ? left : MOST_CREDIT);
	}
	/* While a process is being moved it may still be charged to a group that is not its call's. */
	if (call->memory_id && call->memory_id != BPF_CORE_READ(css, cgroup, kn, id))
		return 0;

	state = bpf_map_lookup_elem(&states, &id);
	if (!state)
		return 0;
	if (notify && usage > notify) {
		epoch = state->notified;
		if (epoch != call->epoch && __sync_val_compare_and_swap(&state->notified, epoch, call->epoch) == epoch)
			tell(CORRAL_EV_NOTIFY, id, usage, notify);
	}
	if (!brake || usage <= brake || stopping(task))
		return 0;
	/*
	 * Newer kernels (6.14) send it from an interrupt, a few microseconds later, if preemption is off here; one such is
	 * on its way per CPU at most, and while it is, this fails: the next fault tries again.
	 */
	if (bpf_send_signal(SIGSTOP_NUMBER))
		return 0;
	count = bpf_map_lookup_elem(&counters, &id);
	if (count)
		__sync_fetch_and_add(&count->brakes, 1);
	if (within_rate(&state->brake_window, &state->brakes_sent, CORRAL_BRAKES_PER_SECOND))
		tell(CORRAL_EV_BRAKE, id, usage, brake);
	return 0;
}
