/* SPDX-License-Identifier: GPL-2.0 */
/* The network policy of a call, shared by the connect gates and the packet filter; and how refusals are told. */
#ifndef CORRAL_POLICY_H
#define CORRAL_POLICY_H

#include "maps.h"

#define ALLOW 1
#define DENY 0

struct endpoint {
	__u32 address[4]; /* network byte order; IPv4 as ::ffff:a.b.c.d */
	__u32 family;	  /* 4 or 6, of the address (an IPv4-mapped one on a v6 socket is 4) */
	__u32 protocol;
	__u16 port; /* host byte order */
	bool any_port; /* the protocol has none: a rule for one port does not speak for it */
};

static __always_inline void endpoint_v4(struct endpoint *to, __u32 address)
{
	/* The kernel takes 0.0.0.0 as a destination for this host itself. */
	if (!address)
		address = bpf_htonl(0x7f000001);
	to->address[0] = 0;
	to->address[1] = 0;
	to->address[2] = bpf_htonl(0xffff);
	to->address[3] = address;
	to->family = 4;
}

static __always_inline void endpoint_v6(struct endpoint *to, __u32 a, __u32 b, __u32 c, __u32 d)
{
	if (!a && !b && c == bpf_htonl(0xffff)) {
		endpoint_v4(to, d);
		return;
	}
	if (!a && !b && !c && !d)
		d = bpf_htonl(1); /* :: means this host itself */
	to->address[0] = a;
	to->address[1] = b;
	to->address[2] = c;
	to->address[3] = d;
	to->family = 6;
}

static __always_inline bool matches(const struct corral_rule *rule, const struct endpoint *to)
{
	return rule->family == to->family && (!rule->port || (!to->any_port && rule->port == to->port)) &&
	       (to->address[0] & rule->mask[0]) == rule->net[0] && (to->address[1] & rule->mask[1]) == rule->net[1] &&
	       (to->address[2] & rule->mask[2]) == rule->net[2] && (to->address[3] & rule->mask[3]) == rule->net[3];
}

static __always_inline bool listed(__u64 id, const struct endpoint *to)
{
	struct corral_rules *list = bpf_map_lookup_elem(&rules, &id);
	__u32 i;

	if (!list)
		return false; /* fails closed */
	for (i = 0; i < CORRAL_MAX_RULES; i++) {
		if (i >= list->count)
			return false;
		if (matches(&list->rule[i], to))
			return true;
	}
	return false;
}

static __always_inline bool permitted(const struct corral_call *call, __u64 id, const struct endpoint *to)
{
	if (call->network == CORRAL_NET_ANY)
		return true;
	return call->network == CORRAL_NET_LIST && listed(id, to);
}

/* A slot for an event about a refusal, or NULL: refusals are cheap for the agent, events are not for us. */
static __always_inline struct corral_denied_event *denied_event(__u64 id, __u32 what)
{
	struct corral_state *state = bpf_map_lookup_elem(&states, &id);
	struct corral_denied_event *event;

	if (!state || !within_rate(&state->denied_window, &state->denied_sent, CORRAL_DENIED_PER_SECOND))
		return NULL;
	event = NEW_EVENT(corral_denied_event, CORRAL_EV_DENIED, id);
	if (event) {
		__builtin_memset((void *)event + sizeof(event->head), 0, sizeof(*event) - sizeof(event->head));
		event->what = what;
	}
	return event;
}

static __always_inline void count_denied_connect(__u64 id)
{
	struct corral_counters *count = bpf_map_lookup_elem(&counters, &id);

	if (count)
		__sync_fetch_and_add(&count->denied_connects, 1);
}

static __always_inline void describe(struct corral_denied_event *event, const struct endpoint *to)
{
	event->family = to->family;
	event->protocol = to->protocol;
	event->address[0] = to->address[0];
	event->address[1] = to->address[1];
	event->address[2] = to->address[2];
	event->address[3] = to->address[3];
	event->port = to->port;
}

#endif
