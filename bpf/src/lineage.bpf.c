// SPDX-License-Identifier: GPL-2.0
/*
 * The processes of attached sessions: what they fork, execute, and how they end. A child is known by its parent, in the
 * kernel and so without a race; who comes into an attached container from elsewhere is known by its group. Processes
 * of no attached session cost one look into a hash for each of these events.
 */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

#define PIDTYPE_PGID 2
#define SIGNAL_GROUP_EXIT 0x00000004
#define OF_MEMORY_V1 (1ULL << 63)

typedef void (*btf_trace_sched_process_exit___grouped)(void *, struct task_struct *, bool);

static __always_inline void *told_event(__u32 kind, __u32 size, __u64 entry)
{
	struct corral_header *head = bpf_ringbuf_reserve(&told, size, 0);
	__u32 zero = 0;

	if (!head) {
		__u64 *lost = bpf_map_lookup_elem(&told_lost, &zero);

		if (lost)
			__sync_fetch_and_add(lost, 1);
		return NULL;
	}
	head->kind = kind;
	head->size = size;
	head->cgroup_id = entry;
	head->at = bpf_ktime_get_ns();
	return head;
}

SEC("tp_btf/sched_process_fork")
int BPF_PROG(corral_lineage_fork, struct task_struct *parent, struct task_struct *child)
{
	__u32 tgid = BPF_CORE_READ(parent, tgid), born = BPF_CORE_READ(child, tgid), watched = CORRAL_WATCHED;
	struct corral_lineage_event *event;
	__u32 *role = bpf_map_lookup_elem(&lineage, &tgid);

	if (!role || *role != CORRAL_WATCHED || born == tgid)
		return 0; /* not ours, or a thread */
	if (bpf_map_update_elem(&lineage, &born, &watched, BPF_ANY))
		return 0;
	event = told_event(CORRAL_LINEAGE_FORK, sizeof(*event), 0);
	if (!event)
		return 0;
	event->tgid = born;
	event->ppid = tgid;
	event->status = 0;
	event->group = 0;
	event->cpu = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

/* The entry by which a process that is not known may be one of an attached container's; 0: by none. */
static __always_inline __u64 entry_of(struct task_struct *task)
{
	__u64 id = bpf_get_current_cgroup_id();
	__u32 memory;

	if (bpf_map_lookup_elem(&entries, &id))
		return id;
	memory = bpf_core_enum_value(enum cgroup_subsys_id, memory_cgrp_id);
	if (memory >= 16)
		return 0;
	id = BPF_CORE_READ(task, cgroups, subsys[memory], cgroup, kn, id) | OF_MEMORY_V1;
	return bpf_map_lookup_elem(&entries, &id) ? id : 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(corral_lineage_exec, struct task_struct *task, int old_pid, struct linux_binprm *binary)
{
	__u32 tgid = bpf_get_current_pid_tgid() >> 32, watched = CORRAL_WATCHED;
	__u32 *role = bpf_map_lookup_elem(&lineage, &tgid);
	struct corral_lineage_exec *event;
	__u64 entry = 0, length;
	unsigned long start, end;

	if (role) {
		if (*role != CORRAL_WATCHED)
			return 0;
	} else {
		entry = entry_of(task);
		if (!entry || bpf_map_update_elem(&lineage, &tgid, &watched, BPF_ANY))
			return 0;
	}
	event = told_event(CORRAL_LINEAGE_EXEC, sizeof(*event), entry);
	if (!event)
		return 0;
	event->base.tgid = tgid;
	event->base.ppid = BPF_CORE_READ(task, real_parent, tgid);
	event->base.status = 0;
	event->base.group = BPF_CORE_READ(task, signal, pids[PIDTYPE_PGID], numbers[0].nr);
	event->base.cpu = BPF_CORE_READ(task, se.sum_exec_runtime);
	event->pad = 0;
	__builtin_memset(event->path, 0, sizeof(event->path));
	bpf_probe_read_kernel_str(event->path, sizeof(event->path), BPF_CORE_READ(binary, filename));
	start = BPF_CORE_READ(task, mm, arg_start);
	end = BPF_CORE_READ(task, mm, arg_end);
	length = end > start ? end - start : 0;
	event->length = length;
	if (length > CORRAL_ARGV - 1)
		length = CORRAL_ARGV - 1;
	asm volatile("%0 &= 1023" : "+r"(length)); /* what the verifier needs, and the compiler would leave out */
	/* The kernel has just written them: the pages are there. */
	__builtin_memset(event->argv, 0, sizeof(event->argv));
	if (bpf_probe_read_user(event->argv, length, (void *)start))
		event->length = 0;
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tp_btf/sched_process_exit")
int corral_lineage_exit(unsigned long long *ctx)
{
	struct task_struct *task = bpf_get_current_task_btf(), *leader;
	__u32 tgid = bpf_get_current_pid_tgid() >> 32;
	struct corral_lineage_event *event;
	__u64 cpu;

	if (!bpf_map_lookup_elem(&lineage, &tgid))
		return 0;
	/* Whether the last thread ends: as in accounting.bpf.c. */
	if (bpf_core_type_exists(btf_trace_sched_process_exit___grouped)) {
		if (!(((volatile unsigned long long *)ctx)[1] & 1))
			return 0;
	} else if (BPF_CORE_READ(task, signal, live.counter) != 0) {
		return 0;
	}
	if (bpf_map_delete_elem(&lineage, &tgid))
		return 0; /* another thread of it was here at the same instant */
	event = told_event(CORRAL_LINEAGE_EXIT, sizeof(*event), 0);
	if (!event)
		return 0;
	leader = BPF_CORE_READ(task, group_leader);
	cpu = BPF_CORE_READ(task, signal, sum_sched_runtime) + BPF_CORE_READ(task, se.sum_exec_runtime);
	if (leader != task)
		cpu += BPF_CORE_READ(leader, se.sum_exec_runtime);
	event->tgid = tgid;
	event->ppid = BPF_CORE_READ(task, real_parent, tgid);
	event->status = BPF_CORE_READ(task, signal, flags) & SIGNAL_GROUP_EXIT ?
				BPF_CORE_READ(task, signal, group_exit_code) :
				BPF_CORE_READ(leader, exit_code);
	event->group = 0;
	event->cpu = cpu;
	bpf_ringbuf_submit(event, 0);
	return 0;
}
