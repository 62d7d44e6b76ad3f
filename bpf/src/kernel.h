/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The few kernel structures that the programs look into, with the fields that they read and no others. With
 * preserve_access_index each access becomes a CO-RE relocation: the loader finds the true offsets in the running
 * kernel's BTF. So neither kernel headers nor BTF are needed to build, and one object serves every kernel.
 */
#ifndef CORRAL_KERNEL_H
#define CORRAL_KERNEL_H

#include <linux/types.h>
#include <linux/bpf.h>
#include <stdbool.h>

#include <bpf/bpf_core_read.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#include "corral.h"

#define PF_EXITING 0x00000004
#define PF_KTHREAD 0x00200000
#define TASK_DEAD 0x00000080

#pragma clang attribute push(__attribute__((preserve_access_index)), apply_to = record)

typedef struct {
	int counter;
} atomic_t;

typedef struct {
	long counter;
} atomic_long_t;

struct list_head {
	struct list_head *next;
};

struct kernfs_node {
	__u64 id;
};

struct cgroup_root {
	int hierarchy_id;
};

struct cgroup {
	struct kernfs_node *kn;
	struct cgroup_root *root;
};

struct cgroup_subsys_state {
	struct cgroup *cgroup;
};

/* Its value differs between kernels and configurations; it is relocated. */
enum cgroup_subsys_id { memory_cgrp_id = 0 };

struct css_set {
	struct cgroup_subsys_state *subsys[16];
	struct cgroup *dfl_cgrp;
};

struct page_counter {
	atomic_long_t usage;
};

struct mem_cgroup {
	struct cgroup_subsys_state css;
	struct page_counter memory;
};

typedef struct {
	unsigned long sig[1];
} sigset_t;

struct sigpending {
	sigset_t signal;
};

struct mm_struct {
	int map_count;
	unsigned long arg_start, arg_end;
};

struct upid {
	int nr;
};

struct pid {
	struct upid numbers[1];
};

struct sched_entity {
	__u64 sum_exec_runtime;
};

struct signal_struct {
	int group_exit_code;
	struct pid *pids[4];
	unsigned long long sum_sched_runtime;
	atomic_t live;
	struct list_head thread_head;
	struct sigpending shared_pending;
	unsigned int flags;
	int group_stop_count;
	struct mm_struct *oom_mm;
};

struct task_io_accounting {
	__u64 rchar;
	__u64 wchar;
	__u64 read_bytes;
	__u64 write_bytes;
};

struct sched_info {
	unsigned long long run_delay;
};

struct task_struct {
	struct sched_entity se;
	int exit_code;
	unsigned int __state;
	unsigned int flags;
	int pid;
	int tgid;
	unsigned long nvcsw;
	unsigned long nivcsw;
	unsigned long min_flt;
	unsigned long maj_flt;
	struct mm_struct *mm;
	struct task_struct *real_parent;
	struct task_struct *group_leader;
	struct list_head thread_node;
	struct signal_struct *signal;
	struct css_set *cgroups;
	struct sched_info sched_info;
	struct task_io_accounting ioac;
	char comm[16];
};

struct linux_binprm {
	const char *filename;
};

struct seq_file;

struct bpf_iter_meta {
	struct seq_file *seq;
	__u64 session_id;
	__u64 seq_num;
};

struct bpf_iter__task {
	struct bpf_iter_meta *meta;
	struct task_struct *task;
};

#pragma clang attribute pop

/* The v2 group of a task that is not the current one. */
static __always_inline __u64 cgroup_id_of(struct task_struct *task)
{
	return BPF_CORE_READ(task, cgroups, dfl_cgrp, kn, id);
}

#endif
