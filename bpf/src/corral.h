/* SPDX-License-Identifier: GPL-2.0 */
/*
 * What user space and the programs share: the layouts of the maps and of the events. bpf/layout.py holds the same
 * layouts for Python, and tests/unit/test_bpf_layout.py compares the two with a compiler. Little is hidden here:
 * every structure is explicitly padded, so that no kernel memory leaks and no compiler differs.
 */
#ifndef CORRAL_H
#define CORRAL_H

#define CORRAL_MAX_CALLS 16384
#define CORRAL_MAX_RULES 64
#define CORRAL_MAX_PACES 32768	     /* calls, sessions and tenants that have a rate */
#define CORRAL_MAX_LEVEL 16	     /* how deep below the hierarchy's root a group may lie to be paced */
#define CORRAL_PACED_ABOVE 4	     /* how many rates may hold for one packet: of the call, its session, its tenant */
#define CORRAL_SMALL_PACKET 160	     /* bytes: acknowledgements, handshakes, look-ups of names */
#define CORRAL_MAX_BASELINES 65536
#define CORRAL_MAX_THREADS 4096	     /* of one process that is moved into a call: more keep their past */
#define CORRAL_RING_BYTES (1 << 20)
#define CORRAL_EXEC_EVENTS 64	     /* per call, over its whole life; the others are counted */
#define CORRAL_OOM_EVENTS 64	     /* per call */
#define CORRAL_DENIED_PER_SECOND 16  /* events per call; the others are counted */
#define CORRAL_BRAKES_PER_SECOND 1024 /* events per call: more processes than that stop, but without an event each */
#define CORRAL_MAX_LINEAGE 65536    /* processes of attached sessions */
#define CORRAL_MAX_ENTRIES 4096	     /* containers whose entering processes are told */
#define CORRAL_ARGV 1024
#define CORRAL_COMM 16
#define CORRAL_PATH 128

enum corral_network { CORRAL_NET_ANY = 0, CORRAL_NET_NONE = 1, CORRAL_NET_LIST = 2 };

enum corral_event_kind {
	CORRAL_EV_BRAKE = 1,
	CORRAL_EV_NOTIFY = 2,
	CORRAL_EV_EXEC = 3,
	CORRAL_EV_OOM = 4,
	CORRAL_EV_DENIED = 5,
};

enum corral_lineage_kind {
	CORRAL_LINEAGE_FORK = 1,
	CORRAL_LINEAGE_EXEC = 2,
	CORRAL_LINEAGE_EXIT = 3,
};

enum corral_lineage_role {
	CORRAL_WATCHED = 1, /* its forks, execs and its end are told, and its children are watched */
	CORRAL_PLACED = 2,  /* it is in its call's leaf: its end alone is told */
};

enum corral_denied_what {
	CORRAL_DENIED_CONNECT = 1,
	CORRAL_DENIED_SEND = 2,
	CORRAL_DENIED_PACKET = 3,
	CORRAL_DENIED_DEVICE = 4,
};

/* One element, written by user space. */
struct corral_config {
	__u64 page_size;
	__u64 pass;	  /* number of the current pass over the tasks */
	__u64 settle;	  /* in this pass, harvest the live tasks of this group now (0: of none) */
	__u64 stride;	  /* bytes by which a call may grow at most, all CPUs together, for one fault on each */
	__u32 armed;	  /* how many calls have a threshold: 0 ends the hot path at once */
	__u32 generation; /* changes whenever a call is registered, armed or forgotten */
	__u32 paced;	  /* how many groups have a rate: 0 spares every packet the look */
	__u32 pad;
};

/*
 * How fast the packets of one group, and of all groups below it, may leave: a virtual clock (the generic cell rate
 * algorithm, ATM Forum TM 4.1), which is a token bucket in one number. Keyed by the id of the v2 group.
 */
struct corral_pace {
	__u64 rate;  /* bytes per second */
	__u64 depth; /* nanoseconds: how much time that was not used may be used later, in one burst */
	__u64 next;  /* CLOCK_MONOTONIC: a packet may leave from then on. Written by the kernel side alone */
};

/* Per CPU: for how many more faults of this address space nothing can have happened that matters. */
struct corral_credit {
	__u64 mm;
	__u32 generation;
	__u32 left;
};

/* What user space asks of one call; keyed by the id of its v2 cgroup. Never written by the kernel side. */
struct corral_call {
	__u64 notify;	  /* bytes, 0 = not armed */
	__u64 brake;	  /* bytes, 0 = not armed */
	__u64 memory_id;  /* id of the memory cgroup that the thresholds mean; 0 = whichever the task is in */
	__u32 epoch;	  /* a new number re-arms the notice */
	__u32 network;	  /* enum corral_network */
	__u32 gpu;	  /* 1: may open GPU device nodes */
	__u32 pad;
};

/* What the kernel side remembers of one call. Made by user space, then written by the kernel side alone. */
struct corral_state {
	__u64 brake_window; /* second in which brakes_sent is counted */
	__u64 denied_window;
	__u32 notified;	   /* the epoch whose notice was sent */
	__u32 brakes_sent;
	__u32 denied_sent;
	__u32 exec_sent;
	__u32 oom_sent;
	__u32 pad;
};

/* What one task used, as the kernel's own task counters say. */
struct corral_usage {
	__u64 faults; /* minor and major */
	__u64 major_faults;
	__u64 read_bytes; /* through read(2) and its kin, page cache included */
	__u64 written_bytes;
	__u64 disk_read_bytes; /* fetched from storage */
	__u64 disk_written_bytes;
	__u64 run_wait_nsec; /* runnable, waiting for a CPU */
	__u64 switches;
};

/* Per CPU and call. */
struct corral_counters {
	struct corral_usage used; /* of the tasks that have ended, and of live ones as of a settle */
	__u64 net_rx_bytes;
	__u64 net_tx_bytes;
	__u64 net_rx_packets;
	__u64 net_tx_packets;
	__u64 forks;
	__u64 execs;
	__u64 exits;
	__u64 brakes;
	__u64 denied_connects;
	__u64 denied_devices;
	__u64 execs_suppressed;
	__u64 oom_kills;
	__u64 paced_packets; /* turned back because of a rate, its own or one above it */
	__u64 no_space;	     /* writes that found the disk full, or a quota used up, while somebody listened */
	__u64 harvests; /* tasks harvested: a reader sees by it that a task ended meanwhile */
};

/* The sum over the live tasks of one call, of pass number `pass`. */
struct corral_live {
	__u64 pass;
	__u64 tasks;
	struct corral_usage used;
};

struct corral_rule {
	__u32 net[4]; /* network byte order; an IPv4 network is kept as ::ffff:a.b.c.d */
	__u32 mask[4];
	__u16 port; /* host byte order, 0 = every port */
	__u16 family; /* 4 or 6: ::/0 does not speak for IPv4 */
};

struct corral_rules {
	__u32 count;
	struct corral_rule rule[CORRAL_MAX_RULES];
};

struct corral_header {
	__u32 kind;
	__u32 size;
	__u64 cgroup_id;
	__u64 at; /* CLOCK_MONOTONIC, nanoseconds */
};

struct corral_memory_event { /* BRAKE, NOTIFY */
	struct corral_header head;
	__u32 tgid;
	__u32 tid;
	__u64 usage;
	__u64 threshold;
};

struct corral_exec_event {
	struct corral_header head;
	__u32 tgid;
	__u32 ppid;
	__u32 uid;
	__u32 pad;
	char comm[CORRAL_COMM];
	char path[CORRAL_PATH];
};

struct corral_oom_event {
	struct corral_header head;
	__u32 tgid;
	__u32 uid;
	char comm[CORRAL_COMM];
};

struct corral_denied_event {
	struct corral_header head;
	__u32 tgid; /* 0 for a packet: it may leave in the context of another process */
	__u32 what; /* enum corral_denied_what */
	__u32 family; /* 4, 6, or 0 for a device */
	__u32 protocol; /* IPPROTO_*, or 0 */
	__u32 address[4]; /* network byte order, IPv4 as ::ffff:a.b.c.d */
	__u32 port; /* host byte order */
	__u32 major;
	__u32 minor;
	__u32 pad;
	char comm[CORRAL_COMM];
};

/* Of a process of an attached session; of a fork, `tgid` is the child. `cpu` in nanoseconds. */
struct corral_lineage_event {
	struct corral_header head; /* cgroup_id: of an exec, the entry by which the process is known; else 0 */
	__u32 tgid;
	__u32 ppid;
	__u32 status; /* of an exit, as of waitpid(2) */
	__u32 group;  /* process group, of an exec */
	__u64 cpu;
};

struct corral_lineage_exec {
	struct corral_lineage_event base;
	__u32 length; /* of argv, which may be longer than what is here */
	__u32 pad;
	char path[CORRAL_PATH];
	char argv[CORRAL_ARGV];
};

#endif
