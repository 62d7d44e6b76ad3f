// SPDX-License-Identifier: GPL-2.0
/* What a call may reach: destinations of connect and of unconnected sends, and GPU device nodes. */
#include "policy.h"

char LICENSE[] SEC("license") = "GPL";

static __always_inline int gate(__u64 id, const struct corral_call *call, const struct endpoint *to, __u32 what)
{
	struct corral_denied_event *event;

	if (permitted(call, id, to))
		return ALLOW;
	count_denied_connect(id);
	event = denied_event(id, what);
	if (event) {
		event->tgid = bpf_get_current_pid_tgid() >> 32;
		describe(event, to);
		bpf_get_current_comm(event->comm, sizeof(event->comm));
		bpf_ringbuf_submit(event, 0);
	}
	return DENY;
}

static __always_inline int gate_v4(struct bpf_sock_addr *ctx, __u32 what)
{
	__u64 id = bpf_get_current_cgroup_id();
	struct corral_call *call = bpf_map_lookup_elem(&calls, &id);
	struct endpoint to = {};

	if (!call || call->network == CORRAL_NET_ANY)
		return ALLOW;
	endpoint_v4(&to, ctx->user_ip4);
	to.port = bpf_ntohs((__u16)ctx->user_port);
	to.protocol = ctx->protocol;
	return gate(id, call, &to, what);
}

static __always_inline int gate_v6(struct bpf_sock_addr *ctx, __u32 what)
{
	__u64 id = bpf_get_current_cgroup_id();
	struct corral_call *call = bpf_map_lookup_elem(&calls, &id);
	struct endpoint to = {};
	__u32 a, b, c, d;

	if (!call || call->network == CORRAL_NET_ANY)
		return ALLOW;
	a = ctx->user_ip6[0];
	b = ctx->user_ip6[1];
	c = ctx->user_ip6[2];
	d = ctx->user_ip6[3];
	endpoint_v6(&to, a, b, c, d);
	to.port = bpf_ntohs((__u16)ctx->user_port);
	to.protocol = ctx->protocol;
	return gate(id, call, &to, what);
}

SEC("cgroup/connect4")
int corral_connect4(struct bpf_sock_addr *ctx)
{
	return gate_v4(ctx, CORRAL_DENIED_CONNECT);
}

SEC("cgroup/connect6")
int corral_connect6(struct bpf_sock_addr *ctx)
{
	return gate_v6(ctx, CORRAL_DENIED_CONNECT);
}

SEC("cgroup/sendmsg4")
int corral_sendmsg4(struct bpf_sock_addr *ctx)
{
	return gate_v4(ctx, CORRAL_DENIED_SEND);
}

SEC("cgroup/sendmsg6")
int corral_sendmsg6(struct bpf_sock_addr *ctx)
{
	return gate_v6(ctx, CORRAL_DENIED_SEND);
}

SEC("cgroup/dev")
int corral_device(struct bpf_cgroup_dev_ctx *ctx)
{
	__u64 id = bpf_get_current_cgroup_id();
	__u32 major = ctx->major, kind = ctx->access_type & 0xffff;
	struct corral_denied_event *event;
	struct corral_counters *count;
	struct corral_call *call;

	if (kind != BPF_DEVCG_DEV_CHAR)
		return ALLOW;
	call = bpf_map_lookup_elem(&calls, &id);
	if (!call || call->gpu || !bpf_map_lookup_elem(&gpu_majors, &major))
		return ALLOW;
	count = bpf_map_lookup_elem(&counters, &id);
	if (count)
		__sync_fetch_and_add(&count->denied_devices, 1);
	event = denied_event(id, CORRAL_DENIED_DEVICE);
	if (event) {
		event->tgid = bpf_get_current_pid_tgid() >> 32;
		event->major = major;
		event->minor = ctx->minor;
		bpf_get_current_comm(event->comm, sizeof(event->comm));
		bpf_ringbuf_submit(event, 0);
	}
	return DENY;
}
