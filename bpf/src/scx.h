/* SPDX-License-Identifier: GPL-2.0 */
/* What the scheduler uses of the kernel's sched_ext, and no more; fitted to the running kernel by name. */
#ifndef CORRAL_SCX_H
#define CORRAL_SCX_H

#include "kernel.h"

/* enum scx_dsq_id_flags, scx_kick_flags, scx_ent_flags: values of the kernel's that clang 14 cannot relocate (64 bits). */
#define SCX_DSQ_LOCAL 0x8000000000000002ULL
#define SCX_KICK_IDLE 1
#define SCX_KICK_PREEMPT 2
#define SCX_TASK_QUEUED 1

struct cpumask { /* libbpf tells a forward declaration from the kernel's structure: see corral_init */
	unsigned long bits[1];
};

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)
struct sched_ext_entity___corral {
	__u32 flags;
	__u32 weight;
	__u64 slice;
};

struct task_struct___corral {
	struct sched_ext_entity___corral scx;
	const struct cpumask *cpus_ptr;
	int nr_cpus_allowed;
	unsigned int flags;
};

enum scx_exit_kind { SCX_EXIT_NONE = 0 };

struct scx_exit_info {
	enum scx_exit_kind kind;
	__s64 exit_code;
	const char *reason;
	char *msg;
};
#pragma clang attribute pop

struct scx_init_task_args;

/* Those that are used: the loader fits them to the kernel's, by name. */
struct sched_ext_ops {
	__s32 (*select_cpu)(struct task_struct *, __s32, __u64);
	void (*enqueue)(struct task_struct *, __u64);
	void (*dispatch)(__s32, struct task_struct *);
	void (*runnable)(struct task_struct *, __u64);
	void (*running)(struct task_struct *);
	void (*stopping)(struct task_struct *, bool);
	void (*quiescent)(struct task_struct *, __u64);
	__s32 (*init_task)(struct task_struct *, struct scx_init_task_args *);
	__s32 (*init)(void);
	void (*exit)(struct scx_exit_info *);
	__u32 timeout_ms;
	char name[128];
};

extern __s32 scx_bpf_create_dsq(__u64 dsq_id, __s32 node) __ksym;
extern __s32 scx_bpf_select_cpu_dfl(struct task_struct *p, __s32 prev_cpu, __u64 wake_flags, bool *is_idle) __ksym;
extern void scx_bpf_dsq_insert(struct task_struct *p, __u64 dsq_id, __u64 slice, __u64 enq_flags) __ksym;
extern void scx_bpf_dsq_insert_vtime(struct task_struct *p, __u64 dsq_id, __u64 slice, __u64 vtime,
				     __u64 enq_flags) __ksym;
extern bool scx_bpf_dsq_move_to_local(__u64 dsq_id) __ksym;
extern struct task_struct *scx_bpf_dsq_peek(__u64 dsq_id) __ksym;
extern bool scx_bpf_task_set_slice(struct task_struct *p, __u64 slice) __ksym;
extern void scx_bpf_kick_cpu(__s32 cpu, __u64 flags) __ksym;
extern __s32 scx_bpf_pick_idle_cpu(const struct cpumask *cpus_allowed, __u64 flags) __ksym;
extern __s32 scx_bpf_task_cpu(const struct task_struct *p) __ksym;
extern __u32 scx_bpf_nr_cpu_ids(void) __ksym;
extern bool bpf_cpumask_test_cpu(__u32 cpu, const struct cpumask *cpumask) __ksym;

#endif
