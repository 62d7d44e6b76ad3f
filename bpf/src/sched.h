/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What the scheduler and user space share; bpf/sched.py has the same layouts, and tests/unit/test_sched_layout.py
 * compares the two with a compiler.
 */
#ifndef CORRAL_SCHED_H
#define CORRAL_SCHED_H

#include <linux/types.h>

#define CORRAL_SCHED_MAX_CALLS 16384
#define CORRAL_SCHED_MAX_GROUPS 4096

/* What user space asks of one call; keyed by the id of its v2 cgroup. Never written by the kernel side. */
struct corral_sched_call {
	__u64 group;	    /* the tenant that it belongs to: id of its v2 cgroup */
	__u32 weight;	    /* among the calls of its tenant, 1 to 10000; 100 is the default */
	__u32 group_weight; /* of its tenant, among tenants and everything else on the host */
	__u32 latency;	    /* 1: served before others while it keeps to its share */
	__u32 pad;
};

/* Made by user space with the call, then written by the kernel side alone. */
struct corral_sched_clock {
	__u64 at;	/* virtual nanoseconds */
	__u32 runnable; /* tasks */
	__u32 counted;	/* the weight by which it counts in its tenant, 0 while none of its tasks is runnable */
};

/* Why the kernel, or we, ended it. Written once, by the kernel side. */
struct corral_sched_end {
	__u64 kind; /* enum scx_exit_kind */
	__s64 code;
	char reason[64];
	char message[192];
};

#endif
