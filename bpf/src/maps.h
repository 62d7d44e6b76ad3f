/* SPDX-License-Identifier: GPL-2.0 */
/*
 * The maps. Every object declares all of them; the loader gives each a path below the pin directory, so the first
 * object makes them and the others, and the next daemon, find them there.
 *
 * Hashes are not preallocated: 16,384 calls must fit, but a host with fifty must not pay for them. A call's entries
 * are all made by user space at registration; the programs only look up, so they never allocate.
 */
#ifndef CORRAL_MAPS_H
#define CORRAL_MAPS_H

#include "kernel.h"

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct corral_config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_call);
} calls SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_state);
} states SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_counters);
} counters SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_live);
} live SEC(".maps");

/* What a task had used before it was moved into a call; keyed by the task's address, dropped when it ends. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_BASELINES);
	__type(key, __u64);
	__type(value, struct corral_usage);
} baselines SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_CALLS);
	__type(key, __u64);
	__type(value, struct corral_rules);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_PACES);
	__type(key, __u64);
	__type(value, struct corral_pace);
} paces SEC(".maps");

/* Majors of the character devices that only calls with a GPU may open. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 64);
	__type(key, __u32);
	__type(value, __u32);
} gpu_majors SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct corral_credit);
} credits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CORRAL_RING_BYTES);
} events SEC(".maps");

/* Processes of attached sessions by their number, with enum corral_lineage_role. Made by user space for the first one. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_LINEAGE);
	__type(key, __u32);
	__type(value, __u32);
} lineage SEC(".maps");

/* Groups (of v2, or with the top bit set of the v1 memory hierarchy) into which processes come from elsewhere. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, CORRAL_MAX_ENTRIES);
	__type(key, __u64);
	__type(value, __u32);
} entries SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, CORRAL_RING_BYTES);
} told SEC(".maps");

/* Events that found `told` full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} told_lost SEC(".maps");

/* Events that found the ring buffer full. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} dropped SEC(".maps");

static __always_inline void *new_event(__u32 kind, __u32 size, __u64 cgroup_id)
{
	struct corral_header *head = bpf_ringbuf_reserve(&events, size, 0);
	__u32 zero = 0;

	if (!head) {
		__u64 *lost = bpf_map_lookup_elem(&dropped, &zero);

		if (lost)
			__sync_fetch_and_add(lost, 1);
		return NULL;
	}
	head->kind = kind;
	head->size = size;
	head->cgroup_id = cgroup_id;
	head->at = bpf_ktime_get_ns();
	return head;
}

/* bpf_ringbuf_reserve wants a constant size. */
#define NEW_EVENT(TYPE, KIND, ID) ((struct TYPE *)new_event(KIND, sizeof(struct TYPE), ID))

/*
 * At most `most` events a second. Two CPUs that open a window at once may send a few more: a cap on cost, not a count.
 */
static __always_inline bool within_rate(__u64 *window, __u32 *sent, __u32 most)
{
	__u64 second = bpf_ktime_get_ns() / 1000000000ULL;

	if (*window != second) {
		*window = second;
		*sent = 0;
	}
	return __sync_fetch_and_add(sent, 1) < most;
}

#endif
