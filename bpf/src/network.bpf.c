// SPDX-License-Identifier: GPL-2.0
/*
 * Packets of a call's sockets: counted, and the last gate. The connect and sendmsg gates judge destinations; here
 * stops what never passed them: a socket from before the policy, MPTCP and SCTP on some kernels, raw sockets. A
 * socket belongs to the group of the process that made it.
 */
#include "policy.h"

char LICENSE[] SEC("license") = "GPL";

#define PROTO_TCP 6
#define PROTO_UDP 17
#define TYPE_RAW 3 /* SOCK_RAW */
#define CONGESTED 2 /* of cgroup_skb/egress: the packet is not sent, and its sender told of congestion */
#define SYN 0x02
#define ACK 0x10

struct ipv4 {
	__u8 version_length;
	__u8 tos;
	__be16 total;
	__be16 id;
	__be16 fragment;
	__u8 ttl;
	__u8 protocol;
	__be16 check;
	__be32 from;
	__be32 to;
};

struct ipv6 {
	__u32 version;
	__be16 payload;
	__u8 next;
	__u8 hops;
	__u32 from[4];
	__u32 to[4];
};

static __always_inline bool is_raw(struct __sk_buff *skb)
{
	struct bpf_sock *sk = skb->sk;

	if (sk)
		sk = bpf_sk_fullsock(sk);
	return sk && sk->type == TYPE_RAW;
}

/* Whether a packet that leaves must be judged by its destination, which is then in `to`. */
static __always_inline bool to_be_judged(struct __sk_buff *skb, struct endpoint *to)
{
	__u32 at;
	__u8 flags = 0;
	__be16 port = 0;

	if (skb->protocol == bpf_htons(0x0800)) {
		struct ipv4 ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return true; /* no header to be found: the empty endpoint matches no rule */
		endpoint_v4(to, ip.to);
		to->protocol = ip.protocol;
		at = (ip.version_length & 0x0f) * 4;
	} else if (skb->protocol == bpf_htons(0x86dd)) {
		struct ipv6 ip;

		if (bpf_skb_load_bytes(skb, 0, &ip, sizeof(ip)))
			return true;
		endpoint_v6(to, ip.to[0], ip.to[1], ip.to[2], ip.to[3]);
		to->protocol = ip.next;
		at = sizeof(ip);
	} else {
		return true;
	}
	if (to->protocol != PROTO_TCP && to->protocol != PROTO_UDP) {
		to->any_port = true;
		return true;
	}
	if (bpf_skb_load_bytes(skb, at + 2, &port, 2))
		return true;
	to->port = bpf_ntohs(port);
	/* A raw socket writes what it likes into the headers, and passed no gate. */
	if (is_raw(skb))
		return true;
	/* The sendmsg and connect gates saw every destination of a UDP socket; its answers need no rule. */
	if (to->protocol == PROTO_UDP)
		return false;
	/* Of TCP, only the first packet of a connection that this side opens. */
	return bpf_skb_load_bytes(skb, at + 13, &flags, 1) || (flags & (SYN | ACK)) == SYN;
}

/* What a packet of `len` bytes takes of the clock. */
static __always_inline __u64 cost_of(const struct corral_pace *pace, __u64 len)
{
	return pace->rate ? len * 1000000000ULL / pace->rate : 0;
}

/*
 * Whether a packet may leave now. What is small may run into debt, as far as the burst is deep: a download must not
 * stall because its acknowledgements are upload, nor a look-up of a name.
 */
static __always_inline bool in_time(const struct corral_pace *pace, __u64 now, __u32 len)
{
	__u64 next = pace->next;

	return next <= now || (len <= CORRAL_SMALL_PACKET && next - now < pace->depth);
}

static __always_inline void charge(struct corral_pace *pace, __u64 now, __u32 len)
{
	__u64 cost = cost_of(pace, len), was = pace->next, from = was;

	if (now > pace->depth && from < now - pace->depth)
		from = now - pace->depth;
	/* Another CPU was faster: it has moved the clock up to now at least, and what is left to do is to add. */
	if (__sync_val_compare_and_swap(&pace->next, was, from + cost) != was)
		__sync_fetch_and_add(&pace->next, cost);
}

/*
 * Whether every rate that holds for this packet lets it go. Then it is charged to all of them, else to none.
 *
 * A packet that is turned back is not lost: TCP is told of local congestion (NET_XMIT_DROP), keeps it, and tries
 * again; UDP loses it, as at a full queue.
 */
static __always_inline bool paced(struct __sk_buff *skb)
{
	__u64 ids[CORRAL_PACED_ABOVE] = {};
	__u64 now = bpf_ktime_get_ns();
	struct corral_pace *pace;
	__u32 level, found = 0;

	for (level = 1; level <= CORRAL_MAX_LEVEL; level++) {
		__u64 id = bpf_skb_ancestor_cgroup_id(skb, level);

		if (!id)
			break;
		pace = bpf_map_lookup_elem(&paces, &id);
		if (!pace)
			continue;
		if (!in_time(pace, now, skb->len))
			return false;
		if (found < CORRAL_PACED_ABOVE)
			ids[found++] = id;
	}
	for (level = 0; level < CORRAL_PACED_ABOVE; level++) {
		__u64 id = ids[level];

		if (!id)
			break;
		pace = bpf_map_lookup_elem(&paces, &id);
		if (pace)
			charge(pace, now, skb->len);
	}
	return true;
}

SEC("cgroup_skb/egress")
int corral_egress(struct __sk_buff *skb)
{
	__u64 id = bpf_skb_cgroup_id(skb);
	struct corral_call *call = bpf_map_lookup_elem(&calls, &id);
	struct corral_config *set;
	__u32 zero = 0;
	struct corral_denied_event *event;
	struct corral_counters *count;
	struct endpoint to = {};

	if (call && call->network != CORRAL_NET_ANY) {
		bool judged = to_be_judged(skb, &to);

		if (call->network == CORRAL_NET_NONE || (judged && !permitted(call, id, &to))) {
			count_denied_connect(id);
			event = denied_event(id, CORRAL_DENIED_PACKET);
			if (event) {
				describe(event, &to);
				bpf_ringbuf_submit(event, 0);
			}
			return DENY;
		}
	}
	count = call ? bpf_map_lookup_elem(&counters, &id) : NULL;
	set = bpf_map_lookup_elem(&config, &zero);
	if (set && set->paced && !paced(skb)) {
		if (count)
			__sync_fetch_and_add(&count->paced_packets, 1);
		return CONGESTED;
	}
	if (count) {
		/* Atomic: a packet sent from a softirq may interrupt one that a process sends. */
		__sync_fetch_and_add(&count->net_tx_bytes, skb->len);
		__sync_fetch_and_add(&count->net_tx_packets, 1);
	}
	return ALLOW;
}

SEC("cgroup_skb/ingress")
int corral_ingress(struct __sk_buff *skb)
{
	__u64 id = bpf_skb_cgroup_id(skb);
	struct corral_counters *count = bpf_map_lookup_elem(&counters, &id);

	if (count) {
		__sync_fetch_and_add(&count->net_rx_bytes, skb->len);
		__sync_fetch_and_add(&count->net_rx_packets, 1);
	}
	return ALLOW;
}
