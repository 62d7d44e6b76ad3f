/* SPDX-License-Identifier: GPL-2.0 */
/* Reading a task's own counters, and what it had used before it came into its call. */
#ifndef CORRAL_USAGE_H
#define CORRAL_USAGE_H

#include "maps.h"

static __always_inline void usage_of(struct task_struct *task, struct corral_usage *use)
{
	__u64 major = BPF_CORE_READ(task, maj_flt);

	__builtin_memset(use, 0, sizeof(*use));
	use->major_faults = major;
	use->faults = major + BPF_CORE_READ(task, min_flt);
	use->switches = BPF_CORE_READ(task, nvcsw) + BPF_CORE_READ(task, nivcsw);
	/* Each of these three depends on the kernel's configuration; absent, it reads as zero. */
	if (bpf_core_field_exists(task->ioac.rchar)) {
		use->read_bytes = BPF_CORE_READ(task, ioac.rchar);
		use->written_bytes = BPF_CORE_READ(task, ioac.wchar);
	}
	if (bpf_core_field_exists(task->ioac.read_bytes)) {
		use->disk_read_bytes = BPF_CORE_READ(task, ioac.read_bytes);
		use->disk_written_bytes = BPF_CORE_READ(task, ioac.write_bytes);
	}
	if (bpf_core_field_exists(task->sched_info.run_delay))
		use->run_wait_nsec = BPF_CORE_READ(task, sched_info.run_delay);
}

/* A counter never falls below its baseline, but a baseline that outlived an exec by another thread might be larger. */
static __always_inline __u64 above(__u64 now, __u64 base)
{
	return now > base ? now - base : 0;
}

/* Takes from `use` what the task had used before it was moved into its call. */
static __always_inline void since_baseline(__u64 key, struct corral_usage *use)
{
	struct corral_usage *base = bpf_map_lookup_elem(&baselines, &key);

	if (!base)
		return;
	use->faults = above(use->faults, base->faults);
	use->major_faults = above(use->major_faults, base->major_faults);
	use->read_bytes = above(use->read_bytes, base->read_bytes);
	use->written_bytes = above(use->written_bytes, base->written_bytes);
	use->disk_read_bytes = above(use->disk_read_bytes, base->disk_read_bytes);
	use->disk_written_bytes = above(use->disk_written_bytes, base->disk_written_bytes);
	use->run_wait_nsec = above(use->run_wait_nsec, base->run_wait_nsec);
	use->switches = above(use->switches, base->switches);
}

/*
 * Plain additions: the target is this CPU's own copy or belongs to the one pass in progress, and the program that
 * writes it cannot be interrupted by itself.
 */
static __always_inline void add_usage(struct corral_usage *to, const struct corral_usage *use)
{
	to->faults += use->faults;
	to->major_faults += use->major_faults;
	to->read_bytes += use->read_bytes;
	to->written_bytes += use->written_bytes;
	to->disk_read_bytes += use->disk_read_bytes;
	to->disk_written_bytes += use->disk_written_bytes;
	to->run_wait_nsec += use->run_wait_nsec;
	to->switches += use->switches;
}

#endif
