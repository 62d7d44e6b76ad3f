// SPDX-License-Identifier: GPL-2.0
/* Which processes come into being in a call, what they execute, and which of them the OOM killer chose. */
#include "maps.h"

char LICENSE[] SEC("license") = "GPL";

typedef void (*btf_trace_mark_victim___task)(void *, struct task_struct *, unsigned int);

/* Not sched_process_fork, which may be preempted since 7.0, and then misses forks: a first wake-up holds a run queue. */
SEC("tp_btf/sched_wakeup_new")
int BPF_PROG(corral_fork, struct task_struct *child)
{
	struct corral_counters *count;
	__u64 id;

	if (BPF_CORE_READ(child, pid) != BPF_CORE_READ(child, tgid))
		return 0; /* a thread */
	/* The child's group, not the parent's: clone3 can place it elsewhere. */
	id = cgroup_id_of(child);
	count = bpf_map_lookup_elem(&counters, &id);
	if (count)
		count->forks++;
	return 0;
}

SEC("tp_btf/sched_process_exec")
int BPF_PROG(corral_exec, struct task_struct *task, int old_pid, struct linux_binprm *binary)
{
	__u64 id = bpf_get_current_cgroup_id();
	struct corral_counters *count = bpf_map_lookup_elem(&counters, &id);
	struct corral_exec_event *event;
	struct corral_state *state;

	if (!count)
		return 0;
	count->execs++;
	state = bpf_map_lookup_elem(&states, &id);
	/* Read before adding, so that the number never wraps round to a second allowance. */
	if (!state || state->exec_sent >= CORRAL_EXEC_EVENTS ||
	    __sync_fetch_and_add(&state->exec_sent, 1) >= CORRAL_EXEC_EVENTS) {
		count->execs_suppressed++;
		return 0;
	}
	event = NEW_EVENT(corral_exec_event, CORRAL_EV_EXEC, id);
	if (!event)
		return 0;
	event->tgid = bpf_get_current_pid_tgid() >> 32;
	event->ppid = BPF_CORE_READ(task, real_parent, tgid);
	event->uid = bpf_get_current_uid_gid();
	event->pad = 0;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	__builtin_memset(event->path, 0, sizeof(event->path));
	bpf_probe_read_kernel_str(event->path, sizeof(event->path), BPF_CORE_READ(binary, filename));
	bpf_ringbuf_submit(event, 0);
	return 0;
}

SEC("tp_btf/mark_victim")
int corral_victim(unsigned long long *ctx)
{
	struct corral_counters *count;
	struct corral_oom_event *event;
	struct corral_state *state;
	struct task_struct *task;
	__u64 id;

	/* Older kernels give a pid here; accounting.bpf.c reports the victim when it ends. */
	if (!bpf_core_type_exists(btf_trace_mark_victim___task))
		return 0;
	task = (struct task_struct *)((volatile unsigned long long *)ctx)[0];
	id = cgroup_id_of(task);
	count = bpf_map_lookup_elem(&counters, &id);
	state = bpf_map_lookup_elem(&states, &id);
	if (!count || !state)
		return 0;
	count->oom_kills++;
	if (__sync_fetch_and_add(&state->oom_sent, 1) >= CORRAL_OOM_EVENTS)
		return 0;
	event = NEW_EVENT(corral_oom_event, CORRAL_EV_OOM, id);
	if (!event)
		return 0;
	event->tgid = BPF_CORE_READ(task, tgid);
	event->uid = ((volatile unsigned long long *)ctx)[1];
	BPF_CORE_READ_STR_INTO(&event->comm, task, comm);
	bpf_ringbuf_submit(event, 0);
	return 0;
}
